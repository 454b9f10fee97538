"""``migrate backfill --bridge``: let an old ranker live on a new encoder's vectors, mapped into the old one's space."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from recsys_llm.commands.migration.moves import Move, view_snippet
from recsys_llm.config import FILE_NAME, Config, TextEncoderConfig
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import ConfigError, MigrationError
from recsys_llm.files import replaced_file
from recsys_llm.part_names import check_parts
from recsys_llm.producers import encoder_model
from recsys_llm.producers.hashing import fingerprint_of
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.producers.vectors import stored_vectors
from recsys_llm.schema import CREATED_TIMESTAMP, EMBEDDING, EVENT_TIMESTAMP, ITEM_ID, TEXT_EMBEDDING
from recsys_llm.sources.connection import open_duckdb
from recsys_llm.storage import VectorStorage
from recsys_llm.text import resolve_model
from recsys_llm.text.bridge import Bridge, fit_bridge
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.transform import VectorTransform
from recsys_llm.timestamps import as_utc, now

MOST_ITEMS = 100_000
"""Items that a map is fitted to and measured on, at most: 300 MB of vectors of 384 dimensions."""
SUFFIX = "_bridge"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class BridgeResult:
    """What a bridge is, and what is left to do."""

    bridge: Bridge
    directory: Path
    view: str
    """Name for the bridged view."""
    encoder: str
    """Its entry in recsys_llm.yaml."""
    todo: str
    """What the user has still to add, as text."""


def check_bridge(move: Move, config: Config) -> None:
    """Refuse a bridge that can't be built, before anything is computed for it.

    Raises
    ------
    ConfigError
        The views hold no item texts, or the new encoder has a map already.
    MigrationError
        There is such a bridge already.
    """
    tag, model = move.new_tag, move.new_tag.model
    if tag.producer != TEXT_EMBEDDING or tag.source != "items":
        raise ConfigError(
            f"--bridge: expected views of item texts, found {move.new.name} of {tag.producer} from {tag.source}; "
            "bridge the item view, and give a user view the bridged encoder in its tag"
        )
    if model is None or config.text_encoders[model].transform is not None:
        raise ConfigError(f"--bridge: the encoder {model!r} has a transform already; bridge from one that has none")
    for view in (move.old, move.new):
        stored = VectorStorage.of(view.name, view.tags)
        if stored is not None and stored.is_bytes:
            raise ConfigError(
                f"--bridge: {view.name} stores vectors as {stored}; bridge between views of float32 vectors"
            )
    target = _directory(move, config)
    if target.exists():
        raise MigrationError(
            f"{target}: exists; rows that were mapped with it must not be mixed with another fit's: go on with it, or "
            "remove it if no view has been materialised with it"
        )


def build_bridge(move: Move, config: Config) -> BridgeResult:
    """Fit a map from the new view's vectors to the old one's, save it, and add its encoder to recsys_llm.yaml.

    Raises
    ------
    ConfigError, MigrationError
        As :func:`check_bridge`; or the old view is a bridge itself, or was computed under another template.
    TrainingError
        Too few items have both vectors.
    """
    check_bridge(move, config)
    old_settings = config.text_encoders[str(move.old_tag.model)]
    directories = (parts_directory(view, config.root) for view in (move.old, move.new))
    old_made, new_made = (read_manifest(part_files(directory)[0]) for directory in directories)
    _check_old(move, old_settings, old_made)
    new, old, newest = _vectors(move, config)
    bridge = fit_bridge(new, old)
    known = max(newest, _trained_until(old_settings, config) or newest).isoformat()
    notes = {
        "bridges": old_made["encoder_fingerprint"],
        "templates": {"items": old_settings.template, "interactions": old_settings.user.model_dump()},
        "trained_until": known,
    }
    directory = _directory(move, config)
    bridge.transform(new_made["encoder_fingerprint"], notes).save(directory)
    encoder, view = directory.name, f"{move.old.name}{SUFFIX}"
    added = _add_encoder(
        config.root, encoder, str(move.new_tag.model), str(directory.relative_to(config.root.resolve()))
    )
    snippet = view_snippet(move.old, view, encoder, bridges=old_made["fingerprint"])
    return BridgeResult(bridge, directory, view, encoder, snippet if added is None else f"{added}\n{snippet}")


def _directory(move: Move, config: Config) -> Path:
    return config.path(f"data/models/{move.old_tag.model}{SUFFIX}")


def _check_old(move: Move, settings: TextEncoderConfig, made: Mapping[str, str]) -> None:
    if "bridges" in made:
        raise ConfigError(
            f"--bridge: {move.old.name} is bridged itself; train the rankers again instead of a second map"
        )
    expected = fingerprint_of({"encoder": made["encoder_fingerprint"], "template": settings.template})
    if expected != made["fingerprint"]:
        raise ConfigError(
            f"--bridge: the template of {move.old_tag.model} in {FILE_NAME} is not the one that {move.old.name} was "
            f"computed with (fingerprints {expected} and {made['fingerprint']}); restore it"
        )


def _vectors(move: Move, config: Config) -> tuple[Floats, Floats, datetime]:
    """Return the newest vectors of the items that both views hold, the new ones first, row by row; and the time of the
    newest.
    """
    newest = f"""
        SELECT {ITEM_ID}, {EMBEDDING}, {EVENT_TIMESTAMP} FROM read_parquet(?)
        QUALIFY row_number() OVER (PARTITION BY {ITEM_ID} ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC) = 1
    """
    query = f"""
        SELECT new.{EMBEDDING}, old.{EMBEDDING}, greatest(new.{EVENT_TIMESTAMP}, old.{EVENT_TIMESTAMP})
        FROM ({newest}) new JOIN ({newest}) old USING ({ITEM_ID})
        ORDER BY hash({ITEM_ID}), {ITEM_ID} LIMIT {MOST_ITEMS}
    """
    files = []
    for view in (move.new, move.old):
        parts = part_files(parts_directory(view, config.root))
        check_parts(parts, view.name)
        files.append([str(part) for part in parts])
    with open_duckdb() as connection:
        found: pa.Table = connection.execute(query, files).to_arrow_table()
    new, old = (stored_vectors(found.column(place).combine_chunks(), {}) for place in range(2))
    return new, old, as_utc(pc.max(found.column(2)).as_py() or now())


def _trained_until(settings: TextEncoderConfig, config: Config) -> datetime | None:
    """Return the cut-off of the old encoder's training: what it knew comes through the map."""
    manifest = EncoderManifest.read(resolve_model(encoder_model(settings, config)).directory)
    times = [None if manifest is None else manifest.trained_until]
    if settings.transform is not None:
        times.append(VectorTransform.load(config.path(settings.transform)).trained_until)
    return max((time for time in times if time is not None), default=None)


def _add_encoder(root: Path, name: str, model: str, directory: str) -> str | None:
    """Add the bridged encoder to recsys_llm.yaml; return the text to add where the file's form doesn't allow it."""
    file = root / FILE_NAME
    text = file.read_text(encoding="utf-8")
    before: Any = yaml.safe_load(text)
    entry = {**before["text_encoders"][model], "transform": directory}
    line = f"{name}: {yaml.safe_dump(entry, default_flow_style=True, width=10**6, sort_keys=False).strip()}"
    head = re.search(r"^text_encoders:[ \t]*(?:#.*)?\n(?:[ \t]*(?:#.*)?\n)*([ ]+)\S", text, re.MULTILINE)
    if head is not None:
        place = head.start(1)
        changed = f"{text[:place]}{head[1]}{line}\n{text[place:]}"
        expected = {**before, "text_encoders": {**before["text_encoders"], name: entry}}
        if yaml.safe_load(changed) == expected:
            with replaced_file(file) as temporary:
                temporary.write_text(changed, encoding="utf-8")
            return None
    return f"# {FILE_NAME}\ntext_encoders:\n  {line}\n"
