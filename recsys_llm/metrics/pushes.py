"""What became of rows that Feast wrote to our Redis store itself: `feast push` and ``write_to_online_store``."""

from __future__ import annotations

from prometheus_client import Counter

PUSHED_ROWS = Counter(
    "recsys_llm_pushed_rows",
    "Rows that Feast wrote: newer, equal (replaced one of the same time) or older (left out).",
    ["project", "view", "outcome"],
)
