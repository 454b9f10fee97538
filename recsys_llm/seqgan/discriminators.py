"""The discriminators by name."""

from __future__ import annotations

from recsys_llm.seqgan.cnn_discriminator import CNNDiscriminator
from recsys_llm.seqgan.density_ratio import DensityRatioDiscriminator
from recsys_llm.seqgan.discriminator import GRUDiscriminator
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.settings import SeqGANConfig

AnyDiscriminator = GRUDiscriminator | CNNDiscriminator | DensityRatioDiscriminator


def make_discriminator(config: SeqGANConfig, generator: Generator, phi: Generator | None = None) -> AnyDiscriminator:
    """Return ``config.discriminator`` for the vocabulary of ``generator``, untrained.

    Parameters
    ----------
    phi
        The pre-trained language model of "density_ratio"; the others have none.

    Raises
    ------
    ValueError
        "density_ratio" without ``phi``.
    """
    if config.discriminator == "density_ratio":
        if phi is None:
            raise ValueError("expected a pre-trained language model for the density-ratio discriminator, found None")
        return DensityRatioDiscriminator(phi, generator)
    items, text = len(generator.counts), generator.text if generator.text.shape[1] else None
    dim, dropout = config.discriminator_dim, config.discriminator_dropout
    if config.discriminator == "gru":
        return GRUDiscriminator(items, text, dim=dim, dropout=dropout)
    context = min(config.history_groups, config.horizon)
    return CNNDiscriminator(items, text, dim=dim, length=config.horizon, context=context, dropout=dropout)
