"""Where computed features lie: one directory of parquet parts for each view, written by `feast materialize`."""

from pathlib import Path

from feast import FileSource
from feast.data_format import ParquetFormat

from recsys_llm import schema

FEATURES = Path(__file__).resolve().parent / "data" / "features"


def parts(view: str) -> FileSource:
    """Return the source of a view's parts."""
    return FileSource(
        name=f"{view}_parts",
        path=str(FEATURES / view),
        file_format=ParquetFormat(),
        timestamp_field=schema.EVENT_TIMESTAMP,
        created_timestamp_column=schema.CREATED_TIMESTAMP,
    )


item_text_embedding_parts = parts(schema.ITEM_TEXT_EMBEDDING)
user_text_embedding_parts = parts(schema.USER_TEXT_EMBEDDING)
user_next_items_parts = parts(schema.USER_NEXT_ITEMS)
user_states_parts = parts(schema.USER_STATES)
item_next_vectors_parts = parts(schema.ITEM_NEXT_VECTORS)
item_stats_parts = parts(schema.ITEM_STATS)
user_stats_parts = parts(schema.USER_STATS)
