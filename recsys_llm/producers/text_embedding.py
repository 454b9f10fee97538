"""Text embeddings: of an item's own text, and of a user's profile and recent history in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import islice

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.config import Config, TextEncoderConfig
from recsys_llm.producers.arrays import stored_type, vector_array
from recsys_llm.producers.base import Due
from recsys_llm.producers.cutoff import check_cutoff, item_versions
from recsys_llm.producers.hashing import content_hashes, fingerprint_of
from recsys_llm.producers.popular_items import popular_items
from recsys_llm.producers.recent_vectors import RecentVectors
from recsys_llm.producers.user_rows import UserRows, text_rows, whole_users
from recsys_llm.producers.user_texts import UserTexts
from recsys_llm.schema import (
    CONTENT_HASH,
    EMBEDDING,
    EVENT_TIMESTAMP,
    ITEM_ID,
    LIKED,
    PROVENANCE,
    ROW_ID,
    USER_ID,
    VECTOR_TAG,
)
from recsys_llm.sources.tables import INTERACTIONS_SCHEMA
from recsys_llm.storage import VectorStorage
from recsys_llm.text import TextEncoder, item_documents
from recsys_llm.text.transform import VectorTransform
from recsys_llm.timestamps import TIMESTAMP, parse_granularity

TEXT = "text"

FEATURES = pa.schema([pa.field(EMBEDDING, pa.list_(pa.float32())), pa.field(ROW_ID, pa.int64())])
_NO_EVENTS = pa.RecordBatch.from_pylist([], schema=INTERACTIONS_SCHEMA)


class _TextEmbedding:
    """What both kinds of text embedding share: rows of (key, time, text) in, vectors out."""

    features = FEATURES
    unit = "tokens"
    join_key: str
    source: str
    """As in the view's tag."""

    def __init__(self, config: Config, settings: TextEncoderConfig, encoder: TextEncoder, template: object) -> None:
        self.config = config
        self.settings = settings
        self.encoder = encoder
        self.chunk_rows = config.chunk_rows
        self._recent = RecentVectors(encoder.encode, encoder.dim)
        self.stored = VectorStorage("float32", encoder.dim) if encoder.transform is None else encoder.transform.stored
        embedding = self.features.get_field_index(EMBEDDING)
        self.features = self.features.set(embedding, pa.field(EMBEDDING, stored_type(self.stored)))
        self.manifest = {
            "fingerprint": fingerprint_of({"encoder": encoder.fingerprint, "template": template}),
            "encoder_fingerprint": encoder.fingerprint,
            "dim": str(encoder.dim),
            "vector": self.stored.tags[VECTOR_TAG],
        }
        if encoder.transform is not None:
            self.manifest |= _bridged(encoder.transform, self.source)

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Encode the texts of ``rows``."""
        vectors = self._recent.encode(rows.column(TEXT).to_pylist())
        return pa.RecordBatch.from_arrays([vector_array(vectors, self.stored)], names=[EMBEDDING])

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the tokens of the texts of ``rows``."""
        return self.encoder.count_tokens(rows.column(TEXT).to_pylist())

    def _rows(self, **columns: pa.Array) -> pa.RecordBatch:
        columns[CONTENT_HASH] = content_hashes(self.manifest["fingerprint"], columns.values())
        return pa.RecordBatch.from_pydict(columns)


class ItemTextEmbedding(_TextEmbedding):
    """Vector of an item's text, valid from the text's own time on, or from the encoder's training cut-off."""

    join_key = ITEM_ID
    source = "items"

    def __init__(self, config: Config, settings: TextEncoderConfig, encoder: TextEncoder) -> None:
        super().__init__(config, settings, encoder, settings.template)

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield items whose row is stamped in (start, end].

        Raises
        ------
        LeakageError
            ``end`` lies before the encoder's training cut-off.
        """
        trained_until = self.encoder.trained_until
        check_cutoff(self.settings.model, trained_until, end)
        for batch, stamps in item_versions(self.config, start, end, trained_until):
            texts = item_documents(batch, self.settings.template, source=self.config.sources.items.origin)
            columns = {ITEM_ID: batch.column(ITEM_ID), EVENT_TIMESTAMP: stamps, TEXT: pa.array(texts, pa.string())}
            yield Due(self._rows(**columns))


class UserTextEmbedding(_TextEmbedding):
    """Vector of a user's profile, of the items that they liked last and of the words that they wrote last.

    A user has a row after each change of any of these, made from what was known strictly before its stamp. Reserved
    user ids hold what cold users are given: the most liked items of a segment, or of everyone, night by night.
    """

    features = pa.schema([FEATURES.field(EMBEDDING), pa.field(PROVENANCE, pa.string()), FEATURES.field(ROW_ID)])
    join_key = USER_ID
    source = "interactions"

    def __init__(self, config: Config, settings: TextEncoderConfig, encoder: TextEncoder) -> None:
        super().__init__(config, settings, encoder, settings.user.model_dump())

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield user texts stamped in (start, end]; a user of whom nothing is known yet has none.

        Raises
        ------
        LeakageError
            ``end`` lies before the encoder's training cut-off.
        RowError
            A user has a reserved id.
        """
        check_cutoff(self.settings.model, self.encoder.trained_until, end)
        texts = UserTexts.read(self.config, self.settings, self.encoder, end)
        for events in whole_users(self.config, end):
            yield from self._due(events, texts.changes(events.column(USER_ID)), texts, start, end)
        for changes in texts.changes_of_others():
            yield from self._due(_NO_EVENTS, changes, texts, start, end)
        yield from self._cold_users(texts, start, end)

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Encode the texts of ``rows``, and say what they were made from."""
        return super().compute(rows, events).append_column(PROVENANCE, rows.column(PROVENANCE))

    def _due(
        self, events: pa.RecordBatch, changes: pa.RecordBatch, texts: UserTexts, start: datetime, end: datetime
    ) -> Iterator[Due]:
        period, not_before = parse_granularity(self.settings.user.granularity), self.encoder.trained_until
        users, rows = text_rows(events, changes, period=period, start=start, end=end, not_before=not_before)
        if not len(users):
            return
        made = self._texts_of(events, users.to_pylist(), rows, texts)
        yield self._known(users, pa.array(rows.stamp), made)

    def _texts_of(
        self, events: pa.RecordBatch, users: list[str], rows: UserRows, texts: UserTexts
    ) -> list[tuple[str, str]]:
        items = events.column(ITEM_ID)
        liked = np.flatnonzero(events.column(LIKED).to_numpy(zero_copy_only=False))
        made = []
        for user, first, end, stamp in zip(
            users, rows.first.tolist(), rows.end.tolist(), rows.stamp.tolist(), strict=True
        ):
            recent = _newest(liked, first, end, self.settings.user.recent_items)
            made.append(texts.of_user(user, items.take(pa.array(recent)).to_pylist(), stamp))
        return made

    def _cold_users(self, texts: UserTexts, start: datetime, end: datetime) -> Iterator[Due]:
        settings = self.settings.user
        found = popular_items(
            self.config,
            days=settings.cold_start_days,
            count=settings.recent_items,
            least_users=settings.cold_start_users,
            start=start,
            end=end,
            not_before=self.encoder.trained_until,
        )
        while some := list(islice(found, self.chunk_rows)):
            users, stamps = pa.array([row.user for row in some]), pa.array([row.stamp for row in some], pa.int64())
            made = [(texts.of_items(row.items, row.stamp), row.provenance) for row in some]
            yield self._known(users, stamps, made)

    def _known(self, users: pa.Array, stamps: pa.Array, made: list[tuple[str, str]]) -> Due:
        """Return the rows with a text."""
        texts, provenances = (pa.array(column, pa.string()) for column in zip(*made, strict=True))
        columns = {USER_ID: users, EVENT_TIMESTAMP: stamps.cast(TIMESTAMP), TEXT: texts, PROVENANCE: provenances}
        return Due(self._rows(**columns).filter(pc.greater(pc.binary_length(texts), 0)))


def _bridged(transform: VectorTransform, source: str) -> dict[str, str]:
    """Return whose place the vectors take: the older encoder's, and the view's that it made of its own templates."""
    bridges = transform.notes.get("bridges")
    if bridges is None:
        return {}
    old = fingerprint_of({"encoder": bridges, "template": transform.notes["templates"][source]})
    return {"bridges": old, "bridged_encoder": bridges}


def _newest(positions: npt.NDArray[np.int64], first: int, end: int, count: int) -> npt.NDArray[np.int64]:
    """Return up to ``count`` of the sorted ``positions`` in [first, end), newest first."""
    low, high = np.searchsorted(positions, [first, end])
    return positions[max(low, high - count) : high][::-1]
