"""Text embeddings: of an item's own text, and of a user's recent history in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.config import Config, TextEncoderConfig
from recsys_llm.producers.arrays import list_array
from recsys_llm.producers.base import Due
from recsys_llm.producers.hashing import content_hashes, fingerprint_of
from recsys_llm.producers.timeline import Timeline
from recsys_llm.producers.user_rows import UserRows, user_rows, whole_users
from recsys_llm.schema import CONTENT_HASH, EMBEDDING, EVENT_TIMESTAMP, ITEM_ID, LIKED, ROW_ID, USER_ID
from recsys_llm.sources import tables
from recsys_llm.text import TextEncoder, item_documents, user_document
from recsys_llm.timestamps import TIMESTAMP, parse_granularity

TEXT = "text"

FEATURES = pa.schema([pa.field(EMBEDDING, pa.list_(pa.float32())), pa.field(ROW_ID, pa.int64())])


class _TextEmbedding:
    """What both kinds of text embedding share: rows of (key, time, text) in, vectors out."""

    features = FEATURES
    unit = "tokens"
    join_key: str

    def __init__(self, config: Config, settings: TextEncoderConfig, encoder: TextEncoder, template: object) -> None:
        self.config = config
        self.settings = settings
        self.encoder = encoder
        self.chunk_rows = config.chunk_rows
        self.manifest = {
            "fingerprint": fingerprint_of({"encoder": encoder.fingerprint, "template": template}),
            "encoder_fingerprint": encoder.fingerprint,
            "dim": str(encoder.dim),
        }

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Encode the texts of ``rows``."""
        vectors = self.encoder.encode(rows.column(TEXT).to_pylist())
        return pa.RecordBatch.from_arrays([list_array(vectors)], names=[EMBEDDING])

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the tokens of the texts of ``rows``."""
        return self.encoder.count_tokens(rows.column(TEXT).to_pylist())

    def _batch(self, keys: pa.Array, stamps: pa.Array, texts: pa.Array) -> pa.RecordBatch:
        hashes = content_hashes(self.manifest["fingerprint"], [keys, stamps, texts])
        return pa.RecordBatch.from_arrays(
            [keys, stamps, texts, hashes], names=[self.join_key, EVENT_TIMESTAMP, TEXT, CONTENT_HASH]
        )


class ItemTextEmbedding(_TextEmbedding):
    """Vector of an item's text, valid from the text's own time on."""

    join_key = ITEM_ID

    def __init__(self, config: Config, settings: TextEncoderConfig, encoder: TextEncoder) -> None:
        super().__init__(config, settings, encoder, settings.template)

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield items whose text is stamped in (start, end]."""
        for batch in tables.items(self.config, start=start, end=end):
            texts = item_documents(batch, self.settings.template, source=self.config.sources.items.origin)
            yield Due(self._batch(batch.column(ITEM_ID), batch.column(EVENT_TIMESTAMP), pa.array(texts, pa.string())))


class UserTextEmbedding(_TextEmbedding):
    """Vector of the items that a user liked last and the words that they wrote last."""

    join_key = USER_ID

    def __init__(self, config: Config, settings: TextEncoderConfig, encoder: TextEncoder) -> None:
        super().__init__(config, settings, encoder, settings.user.model_dump())

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield user texts stamped in (start, end]; a user who has liked nothing and written nothing yet has none."""
        template, source = self.settings.user.template, self.config.sources.items.origin
        titles = Timeline.read(
            tables.items(self.config, end=end), ITEM_ID, lambda batch: item_documents(batch, template, source=source)
        )
        words = Timeline.read(
            tables.user_words(self.config, end=end), USER_ID, lambda batch: batch.column(TEXT).to_pylist()
        )
        period = parse_granularity(self.settings.user.granularity)
        for events in whole_users(self.config, end):
            rows = user_rows(events, period=period, start=start, end=end)
            if len(rows.stamp):
                yield Due(self._documents(events, rows, titles, words))

    def _documents(self, events: pa.RecordBatch, rows: UserRows, titles: Timeline, words: Timeline) -> pa.RecordBatch:
        users = events.column(USER_ID)
        items = events.column(ITEM_ID)
        liked = np.flatnonzero(events.column(LIKED).to_numpy(zero_copy_only=False))
        texts: list[str] = []
        for first, end, stamp in zip(rows.first.tolist(), rows.end.tolist(), rows.stamp.tolist(), strict=True):
            recent = _newest(liked, first, end, self.settings.user.recent_items)
            known = (titles.before(items[int(position)].as_py(), stamp) for position in recent)
            own = words.newest_before(users[first].as_py(), stamp, self.settings.user.recent_words)
            texts.append(user_document([title for title in known if title], own))
        batch = self._batch(
            users.take(pa.array(rows.first)),
            pa.array(rows.stamp, pa.int64()).cast(TIMESTAMP),
            pa.array(texts, pa.string()),
        )
        return batch.filter(pc.greater(pc.binary_length(batch.column(TEXT)), 0))


def _newest(positions: npt.NDArray[np.int64], first: int, end: int, count: int) -> npt.NDArray[np.int64]:
    """Return up to ``count`` of the sorted ``positions`` in [first, end), newest first."""
    low, high = np.searchsorted(positions, [first, end])
    return positions[max(low, high - count) : high][::-1]
