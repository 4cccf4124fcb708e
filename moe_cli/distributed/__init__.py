"""The processes of one training: launch and collectives."""
