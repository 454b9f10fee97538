"""Text embeddings and SeqGAN next items as features of a Feast feature store."""

__version__ = "0.1.0"
