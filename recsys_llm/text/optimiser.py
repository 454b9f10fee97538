"""AdamW as BERT is trained: warm-up, linear decay, clipped gradients.

Devlin et al. 2019, section A.2; Loshchilov and Hutter 2019 for the decoupled weight decay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_llm.errors import TrainingError

GRADIENT_NORM = 1.0
"""Gradients are scaled down to this norm."""
_BETAS, _EPS = (0.9, 0.999), 1e-6


def make_optimiser(modules: Sequence[nn.Module], *, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW over the trainable parameters of ``modules``; biases and layer norms don't decay.

    The learning rate is given to :func:`gradient_step`.
    """
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    # Biases and the weights of layer norms are the only vectors of these models.
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=_BETAS, eps=_EPS)


def warm_up_and_decay(step: int, total: int, *, warm_up: float) -> float:
    """Return the factor of the learning rate in a step: up to 1 over the first steps, then down to 0.

    Parameters
    ----------
    step
        1 to ``total``.
    warm_up
        Share of ``total`` in which the factor grows.

    Examples
    --------
    >>> [round(warm_up_and_decay(step, 10, warm_up=0.2), 3) for step in (1, 2, 3, 10)]
    [0.5, 1.0, 0.889, 0.111]
    """
    growing = int(total * warm_up)
    if step <= growing:
        return step / growing
    return (total + 1 - step) / (total + 1 - max(growing, 1))


def gradient_step(optimiser: torch.optim.Optimizer, loss: Tensor, *, learning_rate: float, where: str) -> float:
    """Take one step and return the loss.

    Parameters
    ----------
    where
        The step's name in messages.

    Raises
    ------
    TrainingError
        The loss or a gradient is not finite; the weights are as before the step.
    """
    value = float(loss.detach())
    if not torch.isfinite(loss.detach()):
        raise TrainingError(f"{where}: expected a finite loss, found {value}; lower the learning rate")
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM))
    if not norm < float("inf"):  # NaN, too
        raise TrainingError(f"{where}: expected finite gradients, found norm {norm}; lower the learning rate")
    for group in optimiser.param_groups:
        group["lr"] = learning_rate
    optimiser.step()
    return value
