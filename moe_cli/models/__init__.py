"""Model families, built on the sparse core and on `blocks`. ViT extends Transformer; the others import no model."""
