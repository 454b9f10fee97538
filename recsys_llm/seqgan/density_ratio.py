"""The density-ratio discriminator: ``logit = log p_phi(x) - log q_theta(x)``.

Against the density q_theta of the generator the best discriminator is ``log p(x) - log q_theta(x)`` (Goodfellow et al.
2014, proposition 1). The generator's own density is known, so that only p is left to learn: by phi, a language model
larger than the generator, first by maximum likelihood and then by the discriminator's cross-entropy. Its logit is a sum
over items, so that each item, and each item that was not drawn, has a reward of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recsys_llm.seqgan.discriminator import HistoryReader
from recsys_llm.seqgan.generator import Generator, ItemTable, logits
from recsys_llm.seqgan.losses import block_rows
from recsys_llm.seqgan.policy import Position


class DensityRatioDiscriminator(nn.Module):
    """Two language models as a discriminator; gradient steps change phi only.

    Parameters
    ----------
    phi
        Pre-trained by maximum likelihood.
    generator
        The one that is trained against it, as it is at each call.
    """

    def __init__(self, phi: Generator, generator: Generator) -> None:
        super().__init__()
        self.phi = phi
        self._generator = (generator,)  # in a tuple, so that its weights are not among this module's parameters

    def read(self, histories: HistoryReader) -> Tensor:
        """Return queries and states of both models after each history, side by side: (B, E + S + E + S)."""
        first, states = histories.read_by(self.phi)
        with torch.no_grad():
            own_first, own_states = histories.read_by(self._generator[0])
        return torch.cat([first, states, own_first, own_states], 1)

    def target(self, history: Tensor) -> Position:
        """Return phi after each history, constant: the policy that the generator is to come near."""
        with torch.no_grad():
            return self._positions(history)[0]

    def forward(self, history: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit that each continuation is real, (n,), as for every ``Discriminator``."""
        target, own = self._positions(history)
        with torch.no_grad():
            own_log_probs = item_log_probs(own, items)
        valid = torch.arange(items.shape[1], device=items.device) < lengths.unsqueeze(1)
        return ((item_log_probs(target, items) - own_log_probs) * valid).sum(1)

    def _positions(self, history: Tensor) -> tuple[Position, Position]:
        generator = self._generator[0]
        sizes = [width for model in (self.phi, generator) for width in (len(model.start), model.state_dim)]
        first, states, own_first, own_states = torch.split(history, sizes, 1)
        with torch.no_grad():
            own_table = generator.item_table()
        return (
            Position(self.phi, self.phi.item_table(), first, states),
            Position(generator, own_table, own_first, own_states),
        )


def item_log_probs(position: Position, items: Tensor) -> Tensor:
    """Return the log-probability of each item of continuations, (B, L); differentiable.

    The (B * L, items) matrix of logits exists one block at a time, in the backward pass too.

    Parameters
    ----------
    items : int64 (B, L)
    """
    queries, flat = position.queries(items).flatten(0, 1), items.flatten()
    rows = block_rows(len(position.table.bias))
    blocks = [
        checkpoint(_log_probs, block, position.table, chosen, use_reentrant=False)
        for block, chosen in zip(torch.split(queries, rows), torch.split(flat, rows), strict=True)
    ]
    return torch.cat(blocks).view(items.shape)


def _log_probs(queries: Tensor, table: ItemTable, items: Tensor) -> Tensor:
    scores = logits(queries, table)
    return scores.gather(1, items.unsqueeze(1)).squeeze(1) - scores.logsumexp(1)


def exact_rewards(
    queries: Tensor, table: ItemTable, target_queries: Tensor, target: ItemTable, items: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the expected reward ``log p(a) - log q(a)`` over all next items a, and that of the item drawn.

    Parameters
    ----------
    queries, table
        Of q, (n, E) and (V, E); differentiable.
    target_queries, target
        Of p; constant.
    items : int64 (n,)
        Drawn.

    Returns
    -------
    expected : float (n,)
        ``-KL(q || p)`` of the next item. Its gradient is exact: ``sum_a grad q(a) (log p(a) - log q(a))``.
    drawn : float (n,)
        Constant.
    """
    rows = block_rows(len(table.bias))
    expected, drawn = [], []
    for block, target_block, chosen in zip(
        torch.split(queries, rows), torch.split(target_queries, rows), torch.split(items, rows), strict=True
    ):
        mean, own = checkpoint(_exact_rewards, block, table, target_block, target, chosen, use_reentrant=False)
        expected.append(mean)
        drawn.append(own)
    return torch.cat(expected), torch.cat(drawn)


def _exact_rewards(
    queries: Tensor, table: ItemTable, target_queries: Tensor, target: ItemTable, items: Tensor
) -> tuple[Tensor, Tensor]:
    log_q = logits(queries, table).log_softmax(1)  # (n, V)
    with torch.no_grad():
        rewards = logits(target_queries, target).log_softmax(1) - log_q
    # The gradient of -log q in the reward has mean 0 under q, so that rewards may be constants.
    return (log_q.exp() * rewards).sum(1), rewards.gather(1, items.unsqueeze(1)).squeeze(1)
