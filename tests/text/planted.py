"""A small world in which items with the same hidden code word follow each other, and nothing else tells them apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys_llm.config import load_config
from recsys_llm.sources import tables
from recsys_llm.text.pairs import item_texts, text_pairs
from tests.builders import config_for, hours, write_interactions, write_items

# Words of one letter are one token, whatever the order in which a tokenizer's merges were learned.
CODES = list("bcdefghi")
FILLERS = list("klmnopqrstuvw")
UNTIL = hours(1000)
PER_CODE, COLD_PER_CODE = 12, 4


def write_world(folder: Path, model: Path, *, users: int = 60, per_code: int = PER_CODE) -> Path:
    """Write tables and recsys_llm.yaml; a fifth of the events, and all of the cold items, come at or after UNTIL."""
    rng = np.random.default_rng(0)
    items = []
    for code, word in enumerate(CODES):
        for number in range(per_code):
            words = [*rng.choice(FILLERS, 7), word]
            items.append((f"{code}-{number:02d}", None, " ".join(rng.permutation(words)), word))
    write_items(folder, items)
    rows = []
    for user in range(users):
        code = int(rng.integers(len(CODES)))
        for time in np.sort(rng.uniform(0, 1250, 20)):
            code = int(rng.integers(len(CODES))) if rng.random() < 0.1 else code
            known = per_code if time >= 1000 else per_code - COLD_PER_CODE
            rows.append((f"u{user}", f"{code}-{int(rng.integers(known)):02d}", hours(float(time)), 5.0, None))
    write_interactions(folder, rows)
    settings = f"{{model: {model}, max_tokens: 24, template: '{{title}}'}}"
    config_for(folder, f"text_encoders:\n  tiny_v1: {settings}\n")
    return folder


def pairs_of(world, **others):
    """Return the world's item texts and training pairs."""
    config = load_config(world)
    encoder = config.text_encoders["tiny_v1"]
    items = item_texts(tables.items(config), encoder, until=UNTIL, source="items")
    return items, text_pairs(tables.interactions(config), items, until=UNTIL, **others)
