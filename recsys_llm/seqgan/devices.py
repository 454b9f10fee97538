"""Where tensors live."""

from __future__ import annotations

import torch


def resolve_device(device: str) -> torch.device:
    """Return the device named; "auto" is the first GPU where there is one, else the CPU.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)
