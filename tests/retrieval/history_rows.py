"""Stored rows of three users and three items over a few hours."""

from __future__ import annotations

from recsys_llm import schema
from tests.retrieval.feast_repository import MOOD, hours

USERS, ITEMS = ["u0", "u1", "u2"], ["i0", "i1", "i2"]


def fill(repository):
    repository.write(
        schema.ITEM_TEXT_EMBEDDING,
        [
            {"item_id": item, "at": hours(at), "embedding": [n + 1.0, at + 1.0, 0, 1], "row_id": 10 * n + at}
            for n, item in enumerate(ITEMS)
            for at in range(3)
        ],
        fingerprint="items-model",
        encoder_fingerprint="encoder",
    )
    repository.write(
        schema.USER_NEXT_ITEMS,
        [
            {
                "user_id": "u0",
                "at": hours(1),
                "item_ids": ["i1", "i2"],
                "log_probs": [-0.5, -1.5],
                "entropy": 2.0,
                "centroid": [1.0, 0, 0, 0],
                "row_id": 1,
            }
        ],
        fingerprint="seqgan",
        encoder_fingerprint="encoder",
    )
    repository.write(MOOD, [{"user_id": "u0", "at": hours(1), "level": 0.5}])
    repository.write(schema.ITEM_STATS, [{"item_id": "i0", "at": hours(0), "n_events": 3, "category": "a"}])
