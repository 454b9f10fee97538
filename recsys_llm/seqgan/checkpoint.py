"""A trained SeqGAN: both generators, the vocabulary and how they came to be.

::

    seqgan_v1/
      manifest.json                   trained_until, scores, losses, settings, SHA-256 of every file
      vocabulary.json                 item ids
      items.safetensors               event counts and text vectors, in vocabulary order
      generator_mle.safetensors       after maximum-likelihood pre-training
      generator_adversarial.safetensors

Nothing is pickled, and a checkpoint with one altered byte is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from recsys_llm.errors import CheckpointError
from recsys_llm.files import canonical_json, read_signed_json, replaced_directory, signed_json, write_synced
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.vocabulary import Vocabulary

FORMAT = 1
GeneratorName = Literal["mle", "adversarial"]
_GENERATORS: tuple[GeneratorName, ...] = ("mle", "adversarial")
SLICES_FILE = "slices.json"
"""Of a directory with several checkpoints; see :mod:`recsys_llm.seqgan.rolling`."""
_MANIFEST = "manifest.json"
_SIGNATURE = "sha256"
_VOCABULARY = "vocabulary.json"
_ITEMS = "items.safetensors"
_IDENTITY = ("format", "files", "trained_until", "chosen", "filter_seen", "text", "generator")


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What :func:`recsys_llm.seqgan.train` returns."""

    vocabulary: Vocabulary
    counts: Ints
    """(V,) events of each item before ``trained_until``: the popularity that the generators are compared with."""
    text: npt.NDArray[np.float32] | None
    """(V, dim) text vectors, zero rows where there is none; None: trained on ids alone."""
    generators: dict[GeneratorName, Generator]
    """In eval mode. No "adversarial" where ``adversarial_epochs`` was 0."""
    manifest: dict[str, Any]
    """JSON values: ``scores``, ``chosen``, ``losses``, ``config``, ``text``, ``files`` and more."""

    @classmethod
    def build(
        cls,
        vocabulary: Vocabulary,
        counts: Ints,
        text: npt.NDArray[np.float32] | None,
        generators: dict[GeneratorName, Generator],
        manifest: dict[str, Any],
    ) -> Self:
        """Return a checkpoint with ``files`` and ``fingerprint`` added to its manifest."""
        for generator in generators.values():
            generator.eval()
        bare = cls(vocabulary, counts, text, generators, manifest)
        files = {name: _sha256(content) for name, content in bare._contents().items()}
        full = {**manifest, "format": FORMAT, "files": files}
        full["fingerprint"] = _sha256(canonical_json({key: full[key] for key in _IDENTITY}))
        return cls(vocabulary, counts, text, generators, full)

    @cached_property
    def _tables(self) -> dict[tuple[int, torch.device], ItemTable]:
        return {}

    @property
    def fingerprint(self) -> str:
        """Hash (hex) of weights, vocabulary, text vectors, training cut-off and choice; not of time or place."""
        return str(self.manifest["fingerprint"])

    @property
    def trained_until(self) -> datetime:
        """No event at or after this time was used."""
        return datetime.fromisoformat(self.manifest["trained_until"])

    @property
    def encoder_fingerprint(self) -> str | None:
        """Of the encoder that made the item text vectors; None: trained on ids alone."""
        return None if self.manifest["text"] is None else str(self.manifest["text"]["fingerprint"])

    @property
    def filter_seen(self) -> bool:
        """Whether repeats were rare enough in training to leave out what a user has had."""
        return bool(self.manifest["filter_seen"])

    def generator(self, name: Literal["chosen", "mle", "adversarial"]) -> Generator:
        """Return a generator; "chosen" is the one with the better validation NDCG@10.

        Raises
        ------
        CheckpointError
            It was not trained.
        """
        key: GeneratorName = self.manifest["chosen"] if name == "chosen" else name
        if key not in self.generators:
            raise CheckpointError(f"the checkpoint has no {name!r} generator; train with adversarial_epochs >= 1")
        return self.generators[key]

    def table(self, generator: Generator) -> ItemTable:
        """Return the items of one of the checkpoint's generators, on its device; made once, for it doesn't change."""
        key = id(generator), generator.start.device
        if key not in self._tables:
            with torch.no_grad():
                self._tables[key] = generator.item_table()
        return self._tables[key]

    @cached_property
    def padded_text(self) -> npt.NDArray[np.float32] | None:
        """(V + 1, dim) the text vectors, then a zero row: that of index -1."""
        return None if self.text is None else np.concatenate([self.text, np.zeros((1, self.text.shape[1]), np.float32)])

    def save(self, directory: Path | str) -> None:
        """Write the checkpoint; a directory with an older one is replaced.

        Raises
        ------
        CheckpointError
            ``directory`` exists and is no checkpoint.
        """
        target = Path(directory)
        if not is_replaceable(target):
            raise CheckpointError(f"{target}: exists and is no checkpoint; name another directory")
        with replaced_directory(target) as fresh:
            for name, content in {**self._contents(), _MANIFEST: signed_json(self.manifest, key=_SIGNATURE)}.items():
                write_synced(fresh / name, content)

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read a checkpoint and check every byte of it.

        Raises
        ------
        CheckpointError
            A file is missing, altered or of another format version; the message names it.
        """
        root = Path(directory)
        manifest = _read_manifest(root)
        contents = {name: _read(root / name) for name in manifest["files"]}
        for name, expected in manifest["files"].items():
            found = _sha256(contents[name])
            if found != expected:
                raise CheckpointError(f"{root / name}: expected SHA-256 {expected}, found {found}; {_REMEDY}")
        try:
            return cls._parsed(contents, manifest)
        except _UNREADABLE as error:  # the bytes are as their manifest says, which somebody else may have written
            raise CheckpointError(
                f"{root}: no checkpoint of ours ({type(error).__name__}: {error}); {_REMEDY}"
            ) from None

    @classmethod
    def _parsed(cls, contents: Mapping[str, bytes], manifest: dict[str, Any]) -> Self:
        """Return what the files hold; raises one of :data:`_UNREADABLE` where they don't fit together."""
        vocabulary = Vocabulary(tuple(_item_ids(contents[_VOCABULARY])))
        items = load_tensors(contents[_ITEMS])
        text = items.get("text")
        for name, tensor in items.items():
            if len(tensor) != len(vocabulary):
                raise ValueError(f"expected a row of {name} for each of {len(vocabulary)} items, found {len(tensor)}")
        for name in ("counts", "training_counts"):
            if items[name].dtype != torch.int64 or items[name].dim() != 1:
                raise ValueError(f"expected {name} as int64 (V,), found {items[name].dtype} {tuple(items[name].shape)}")
        generators: dict[GeneratorName, Generator] = {}
        for key in _GENERATORS:
            if _file(key) in contents:
                with torch.random.fork_rng(devices=[]):  # its random start is overwritten
                    generator = Generator(items["training_counts"], text, **manifest["generator"])
                generator.load_state_dict(load_tensors(contents[_file(key)]))
                generators[key] = generator.eval()
        found = cls(vocabulary, items["counts"].numpy(), None if text is None else text.numpy(), generators, manifest)
        if found.trained_until.tzinfo is None or manifest["chosen"] not in generators:
            raise ValueError("expected trained_until with a zone and the chosen generator")
        # What is read of the manifest later is here, and of its type.
        _ = found.fingerprint, found.encoder_fingerprint, found.filter_seen
        return found

    def _contents(self) -> dict[str, bytes]:
        some = next(iter(self.generators.values()))
        items = {"counts": torch.from_numpy(self.counts), "training_counts": some.counts.cpu()}
        if self.text is not None:
            items["text"] = torch.from_numpy(self.text)
        contents = {_VOCABULARY: canonical_json(list(self.vocabulary.item_ids)), _ITEMS: save_tensors(items)}
        for key, generator in self.generators.items():
            weights = {name: value.detach().cpu().contiguous() for name, value in generator.state_dict().items()}
            contents[_file(key)] = save_tensors(weights)
        return contents


def is_replaceable(target: Path) -> bool:
    """Return whether a model may be written to ``target``: nothing is there, or a model is."""
    if not target.is_dir():
        return not target.exists()
    return any((target / name).is_file() for name in (_MANIFEST, SLICES_FILE)) or not any(target.iterdir())


_REMEDY = "the checkpoint is damaged: copy it again or train anew"


_UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)
"""What parsing raises where files are as they were signed, and no checkpoint; RuntimeError: also of deep JSON."""


def _item_ids(content: bytes) -> list[str]:
    found = json.loads(content)
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(f"{_VOCABULARY}: expected a list of strings")
    return found


def _file(name: GeneratorName) -> str:
    return f"generator_{name}.safetensors"


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / _MANIFEST
    content = _read(path)
    try:
        manifest = read_signed_json(content, key=_SIGNATURE)
    except ValueError:
        raise CheckpointError(f"{path}: not as it was written; {_REMEDY}") from None
    found, files = manifest.get("format"), manifest.get("files")
    if found != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, found {found}; train anew with this version")
    known = {_VOCABULARY, _ITEMS, *map(_file, _GENERATORS)}
    if not isinstance(files, dict) or not files.keys() <= known:
        named = sorted(files.keys() - known) if isinstance(files, dict) else files
        raise CheckpointError(f"{path}: expected the files {', '.join(sorted(known))}, found {named!r}; {_REMEDY}")
    return manifest


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror}); train a model or check the path") from None
