"""Where a training stands, on disk, so that a killed one goes on: named tensors and JSON, nothing pickled.

::

    minilm_domain.partial/
      state-000000000400.safetensors   weights, the optimiser's moments, the state of random numbers
      state.json                       run, values, the name and SHA-256 of the tensors

``state.json`` takes the place of the older one in one rename, after the tensors that it names are on disk. A kill at
any moment leaves the old state or the new one.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor, nn

from recsys_llm.errors import CheckpointError
from recsys_llm.files import is_plain_name, read_signed_json, replaced_file, sha256_of, signed_json

FORMAT = 1
_STATE = "state.json"
_OURS = ("state", ".state")
"""How the names of our files begin, temporary ones included."""
_KEYS = {"run", "step", "values", "file", "sha256"}
_REMEDY = "start the training again with --restart, or remove the directory"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingState:
    """Everything that a training needs to go on as if it had never stopped."""

    run: str
    """Name of the training, from :func:`run_name`: the state of another one is never taken up."""
    step: int
    """Gradient steps done; part of the file's name."""
    tensors: Mapping[str, Tensor]
    """Of any device and type; read back on the CPU."""
    values: Mapping[str, Any]
    """JSON values; floats come back bit for bit."""

    def save(self, directory: Path) -> None:
        """Write the state in place of the older one.

        Raises
        ------
        CheckpointError
            ``directory`` holds something that is no training state.
        """
        _check_ours(directory)
        directory.mkdir(parents=True, exist_ok=True)
        file = directory / f"state-{self.step:012d}.safetensors"
        with replaced_file(file) as temporary:
            save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}, temporary)
            digest = sha256_of(temporary)
        content = {
            "format": FORMAT,
            "run": self.run,
            "step": self.step,
            "values": dict(self.values),
            "file": file.name,
            "sha256": digest,
        }
        with replaced_file(directory / _STATE) as temporary:
            temporary.write_bytes(signed_json(content))
        for other in directory.iterdir():
            if other.name not in (file.name, _STATE):
                other.unlink()

    @classmethod
    def load(cls, directory: Path, *, run: str) -> Self | None:
        """Read the state of a training; None where there is none, or that of another training.

        Raises
        ------
        CheckpointError
            A file is missing, truncated or altered, or ``directory`` holds something else.
        """
        _check_ours(directory)
        path = directory / _STATE
        if not path.is_file():
            return None
        content = _read_signed(path)
        if content["run"] != run:
            _logger.warning(
                "%s: holds step %d of another training (other model, texts or settings); it will be replaced",
                directory,
                content["step"],
            )
            return None
        if not is_plain_name(content["file"]):
            raise CheckpointError(
                f"{path}: expected the name of a file beside it, found {content['file']!r}; {_REMEDY}"
            )
        file = directory / content["file"]
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{file}: can't be read ({error.strerror}); {_REMEDY}") from None
        if hashlib.sha256(raw).hexdigest() != content["sha256"]:
            raise CheckpointError(f"{file}: altered or truncated since it was saved; {_REMEDY}")
        try:
            tensors = load_tensors(raw)
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file}: no safetensors file ({type(error).__name__}: {error}); {_REMEDY}") from None
        return cls(content["run"], content["step"], tensors, content["values"])


def state_directory(target: Path) -> Path:
    """Return where the state of a training that will write ``target`` is kept: beside it.

    Examples
    --------
    >>> state_directory(Path("models/minilm_domain")).as_posix()
    'models/minilm_domain.partial'
    """
    return target.with_name(f"{target.name}.partial")


def discard_state(directory: Path) -> None:
    """Remove a state, of whichever training; nothing happens where there is none.

    Raises
    ------
    CheckpointError
        ``directory`` holds something that is no training state.
    """
    _check_ours(directory)
    if directory.exists():
        # Without the JSON there is no state: should the process be killed here, nothing half-removed is taken up.
        (directory / _STATE).unlink(missing_ok=True)
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def run_name(**identity: Any) -> str:
    """Return a name (hex) for a training: a hash of everything that decides its outcome.

    Parameters
    ----------
    identity
        JSON values: settings, fingerprint of the base model, cut-off, a hash of the data.

    Examples
    --------
    >>> run_name(seed=0, model="a") == run_name(model="a", seed=0) != run_name(model="a", seed=1)
    True
    """
    content = json.dumps({"format": FORMAT, **identity}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def data_digest(texts: Iterable[str], *arrays: npt.NDArray[np.generic]) -> str:
    """Return a hash (hex) of a training's texts and arrays, for :func:`run_name`."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode("utf-8", "surrogatepass") + b"\0")
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes() + b"\0")
    return found.hexdigest()


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Return a module's parameters and saved buffers as ``prefix.name``."""
    return {f"{prefix}.{name}": tensor.detach() for name, tensor in module.state_dict().items()}


def restore_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Set a module to what :func:`module_tensors` returned.

    Raises
    ------
    CheckpointError
        A tensor is missing, is one too many, or has another shape.
    """
    try:
        module.load_state_dict(under(prefix, tensors))
    except RuntimeError as error:
        raise CheckpointError(f"training state: doesn't fit the model: {error}; {_REMEDY}") from None


def optimiser_tensors(prefix: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments and counters as ``prefix.PARAMETER.name``; PARAMETER is its place in the groups.

    Learning rates and other options are not part of it: they follow from settings and step.
    """
    state = optimiser.state_dict()["state"]
    return {f"{prefix}.{place}.{name}": value for place, slots in state.items() for name, value in slots.items()}


def restore_optimiser(prefix: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Set an optimiser over the same parameters to what :func:`optimiser_tensors` returned.

    Raises
    ------
    CheckpointError
        The tensors are of another optimiser.
    """
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in under(prefix, tensors).items():
        number, _, name = key.partition(".")
        slots.setdefault(int(number), {})[name] = value
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for place, values in slots.items():
        shapes = {value.shape for value in values.values() if value.dim()}
        if place >= len(parameters) or shapes - {parameters[place].shape}:
            raise CheckpointError(f"training state: doesn't fit the optimiser's parameter {place}; {_REMEDY}")
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})


def random_tensors(prefix: str, device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's random numbers on the CPU and, where it is one, on a CUDA device."""
    found = {f"{prefix}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found[f"{prefix}.cuda"] = torch.cuda.get_rng_state(device)
    return found


def restore_random(prefix: str, device: torch.device, tensors: Mapping[str, Tensor]) -> None:
    """Set torch's random numbers to what :func:`random_tensors` returned.

    A state that was saved on another kind of device goes on, with other random numbers on this one.
    """
    torch.set_rng_state(tensors[f"{prefix}.cpu"])
    if device.type == "cuda" and f"{prefix}.cuda" in tensors:
        torch.cuda.set_rng_state(tensors[f"{prefix}.cuda"], device)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors called ``prefix.NAME``, by NAME.

    Examples
    --------
    >>> under("head", {"head.bias": torch.zeros(1), "headless.bias": torch.ones(1)})
    {'bias': tensor([0.])}
    """
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}.")
    }


def _check_ours(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise CheckpointError(f"{directory}: is a file; expected a directory with a training state, or nothing")
    foreign = [path for path in directory.iterdir() if not path.name.startswith(_OURS)] if directory.exists() else []
    if foreign:
        raise CheckpointError(
            f"{directory}: holds {foreign[0].name}, which is no training state; move it, or name another --out"
        )


def _read_signed(path: Path) -> dict[str, Any]:
    try:
        content = read_signed_json(path.read_bytes())
    except (OSError, ValueError):
        raise CheckpointError(f"{path}: not as it was written; {_REMEDY}") from None
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, found {content.get('format')}; {_REMEDY}")
    lacking = sorted(_KEYS - content.keys())
    if lacking or not isinstance(content["values"], dict) or not isinstance(content["step"], int):
        raise CheckpointError(f"{path}: expected the keys {', '.join(sorted(_KEYS))}, lacks {lacking}; {_REMEDY}")
    return content
