"""``recsys-llm explain``: what a key's row in a view is, where it comes from, and whether it is what is served."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_llm.commands.migration.coverage import row_id_view
from recsys_llm.commands.migration.moves import view_tag
from recsys_llm.config import load_config
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import DataError
from recsys_llm.producers import Producer, open_producer
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.retrieval import open_store
from recsys_llm.retrieval.online import NO_ROW, Request, open_reader
from recsys_llm.retrieval.store import known_view
from recsys_llm.schema import CONTENT_HASH, CREATED_TIMESTAMP, EVENT_TIMESTAMP, ROW_ID
from recsys_llm.sources.connection import open_duckdb, quoted
from recsys_llm.timestamps import MICROSECOND, as_utc, from_micros, now

if TYPE_CHECKING:
    import feast

_TEXT = "text"


@dataclass(frozen=True)
class Explanation:
    """One stored row."""

    view: str
    key: str
    valid_from: datetime
    computed_at: datetime
    part: str
    """File that holds the row."""
    content_hash: str
    fingerprint: str | None
    """Of the model and settings that computed it."""
    bridges: str | None
    """Of the older view that it stands in for."""
    model: str | None
    """Name in recsys_llm.yaml."""
    text: str | None
    """What was encoded, as the source has it now; None for features that come from no text."""
    source: str
    """Whether the source and the settings would give the same row today."""
    online: str
    """What the online store holds."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        times = {"valid_from": self.valid_from.isoformat(), "computed_at": self.computed_at.isoformat()}
        return {**asdict(self), **times}

    def __str__(self) -> str:
        facts = [(name, value) for name, value in self.as_dict().items() if value is not None]
        return "\n".join(f"{name.replace('_', ' '):<13} {value}" for name, value in facts)


def explain_row(
    repository: Path, view: str, key: str, *, at: datetime | None = None, config_file: str | None = None
) -> Explanation:
    """Return the row of ``key`` that was valid at a time, by default now.

    Raises
    ------
    ConfigError
        There is no such view, or recsys_llm doesn't compute it.
    DataError
        The key has no row by then.
    """
    store, config = open_store(repository, config_file=config_file), load_config(repository)
    definition = known_view(store, view)
    tag = view_tag(definition)
    row = _newest(config.root, definition, key, now() if at is None else as_utc(at, name="at"))
    manifest = read_manifest(Path(row["filename"]))
    text, source = _origin(open_producer(view, tag, config), key, row, manifest)
    return Explanation(
        view=view,
        key=key,
        valid_from=as_utc(row[EVENT_TIMESTAMP]),
        computed_at=as_utc(row[CREATED_TIMESTAMP]),
        part=row["filename"],
        content_hash=row[CONTENT_HASH].hex(),
        fingerprint=manifest.get("fingerprint"),
        bridges=manifest.get("bridges"),
        model=tag.model,
        text=text,
        source=source,
        online=_online(store, definition, key, row),
    )


def _newest(root: Path, view: feast.FeatureView, key: str, at: datetime) -> dict[str, Any]:
    files, join_key = [str(file) for file in part_files(parts_directory(view, root))], view.join_keys[0]
    columns = [EVENT_TIMESTAMP, CREATED_TIMESTAMP, CONTENT_HASH]
    columns += [ROW_ID] if any(field.name == ROW_ID for field in view.features) else []
    query = f"""
        SELECT {", ".join(columns)}, filename FROM read_parquet(?, filename = true)
        WHERE {quoted(join_key)} = ? AND {EVENT_TIMESTAMP} <= ?
        ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC LIMIT 1
    """
    rows: list[dict[str, Any]] = []
    if files:
        with open_duckdb() as connection:
            rows = connection.execute(query, [files, key, at]).to_arrow_table().to_pylist()
    if not rows:
        raise DataError(
            f"view {view.name}: {join_key} {key!r} has no row at {at}; check the key, ask for a later time, or "
            "materialise the view"
        )
    return rows[0]


def _origin(producer: Producer, key: str, row: dict[str, Any], manifest: dict[str, str]) -> tuple[str | None, str]:
    """Return the text behind a row, and whether it would be computed alike today."""
    if manifest.get("fingerprint") != producer.manifest["fingerprint"]:
        return (
            None,
            f"the model or settings have changed since: they have fingerprint {producer.manifest['fingerprint']}",
        )
    stamp = as_utc(row[EVENT_TIMESTAMP])
    for due in producer.inputs(stamp - MICROSECOND, stamp):
        for found in due.rows.to_pylist():
            if found[producer.join_key] == key:
                same = found[CONTENT_HASH] == row[CONTENT_HASH]
                state = (
                    "unchanged" if same else "changed since; the next `feast materialize` over this time computes it"
                )
                return found.get(_TEXT), state
    return None, "the source has no such row any more"


def _online(store: feast.FeatureStore, definition: feast.FeatureView, key: str, row: dict[str, Any]) -> str:
    from feast.protos.feast.types.Value_pb2 import Value as ValueProto

    reader, light = open_reader(store), row_id_view(store, definition)
    try:
        stored = reader.read([Request(light.entity, (light,), (key,))])[0][0]
    finally:
        reader.close()
    stamp = int(stored.timestamps[0])
    if stamp == NO_ROW:
        return "no row"
    when = from_micros(stamp)
    if ROW_ID not in row:
        same = when >= as_utc(row[EVENT_TIMESTAMP]).replace(microsecond=0)
        return f"a row of {when.isoformat()}" + ("" if same else ", an older one")
    held = stored.values[ROW_ID][0]
    same = held is not None and ValueProto.FromString(held).int64_val == row[ROW_ID]
    return "this row" if same else f"another row, of {when.isoformat()}"
