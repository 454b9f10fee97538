"""Online rows with every kind of value that a store may hold."""

from __future__ import annotations

import math

import numpy as np

from recsys_llm import schema
from tests.retrieval.feast_repository import DIMENSION, MOOD, MOOD_TTL, NOTES, hours

ITEMS, NOW = 30, hours(100)


def vector(rng):
    return rng.standard_normal(DIMENSION).astype(np.float32).tolist()


def fill_online(repository):
    rng = np.random.default_rng(0)
    items = [f"i{number}" for number in range(ITEMS)] + ["", "ключ", "\U0001f600", "a\x00b"]
    write = repository.write_online
    write(
        schema.ITEM_TEXT_EMBEDDING,
        [
            {"item_id": item, "at": hours(place), "embedding": vector(rng), "row_id": -place}
            for place, item in enumerate(items)
        ],
    )
    write(
        schema.ITEM_STATS,
        [
            {
                "item_id": item,
                "at": hours(place % 5),
                "n_events": [0, -1, 2**40, 7, None][place % 5],
                "mean_rating": [0.1, None, math.nan, math.inf, -0.0][place % 5],
                "category": ["Comedy,Drama", "", None, "жанр"][place % 4],
            }
            for place, item in enumerate(items[:20])
        ],
    )
    write(
        NOTES,
        [
            {"item_id": "i0", "at": hours(0), "words": ["a", "ß", ""], "counts": [1, -(2**40)]},
            {"item_id": "i1", "at": hours(0), "words": ["b"], "counts": [0]},
        ],
    )
    write(
        schema.USER_NEXT_ITEMS,
        [
            {
                "user_id": "u1",
                "at": hours(1),
                "item_ids": ["i3", "i1", "elsewhere"],
                "log_probs": [-0.1, -0.2, -0.3],
                "entropy": 1.5,
                "centroid": vector(rng),
                "row_id": 1,
            }
        ],
    )
    write(schema.USER_TEXT_EMBEDDING, [{"user_id": "u1", "at": hours(1), "embedding": vector(rng), "row_id": 2}])
    at_edge = NOW - MOOD_TTL
    write(
        MOOD,
        [
            {"user_id": "u1", "at": at_edge, "level": 0.3},
            {"user_id": "stale", "at": at_edge.replace(hour=at_edge.hour - 1), "level": 0.4},
        ],
    )
