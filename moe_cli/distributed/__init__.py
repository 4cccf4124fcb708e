"""The processes of one training: launch, ranks and collectives."""
