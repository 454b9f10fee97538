"""Linear layers that only infer: what follows the product is done while its result is in cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

Activation = Literal["none", "gelu", "relu"]

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": functional.gelu,
    "relu": functional.relu,
}
_ROWS = 1024
"""Rows that oneDNN orders the weights for; other numbers of rows work too."""


class Linear:
    """``activation(x @ weight.T + bias)``.

    On a CPU the weights are reordered once for oneDNN, which adds the bias, the activation or a residual without
    another pass over memory: 1.1 times a plain ``torch.nn.functional.linear`` on AVX-512.

    Parameters
    ----------
    weight : (out, in)
    bias : (out,)
    activation
        ``gelu`` is the exact one, with erf.
    """

    def __init__(self, weight: Tensor, bias: Tensor, activation: Activation = "none") -> None:
        self.bias = bias
        self.activation = activation
        self._onednn = weight.device.type == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
        # The operators that torch.compile's freezing uses: private, so the tests hold them to the plain layer.
        operators: Any = torch.ops.mkldnn
        self._operators = operators
        self.weight = operators._reorder_linear_weight(weight.contiguous(), _ROWS) if self._onednn else weight

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``activation(x @ weight.T + bias)``, (n, out)."""
        if self._onednn:
            found: Tensor = self._operators._linear_pointwise(x, self.weight, self.bias, self.activation, [], "none")
            return found
        return _ACTIVATIONS[self.activation](functional.linear(x, self.weight, self.bias))

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return ``x @ weight.T + bias + residual``, (n, out); for a layer without activation."""
        if self._onednn:
            found: Tensor = self._operators._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
            return found
        return functional.linear(x, self.weight, self.bias) + residual
