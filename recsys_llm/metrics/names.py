"""Names, labels and buckets of the metrics of lookups."""

from __future__ import annotations

from prometheus_client import Counter

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
"""Upper bounds of the buckets of a lookup's time."""
STATUSES = ("missing", "stale", "present", "fallback", "unavailable")
"""By the number of ``retrieval.blocks.Status``."""
OUTCOMES = ("ok", "defaults", "error")

LOOKUP_SECONDS = "recsys_llm_lookup_seconds", "Time of a lookup: ok, defaults or error.", ["project", "status"]
LOOKUP_ROWS = "recsys_llm_lookup_rows", "Rows that lookups asked for.", ["project", "view", "status"]
CACHE_HITS = "recsys_llm_item_cache_hits", "Rows handed out without asking the store.", ["project"]
CACHE_MISSES = "recsys_llm_item_cache_misses", "Rows that the item cache had to read.", ["project"]
BREAKER_OPEN = "recsys_llm_breaker_open", "1 while a circuit breaker is open, else 0.", ["project"]
STORE_ERRORS = Counter("recsys_llm_store_errors", "Failures of the online store.", ["project", "type"], registry=None)
"""Of the library itself, since failures are rare."""
