"""Made-up item texts of a realistic mix of lengths, for measuring where no texts are given."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from recsys_llm.sources.simulated import write_simulated

_MEDIAN_WORDS = 40
_SPREAD = 0.8
"""Of the logarithm of the length: a tenth of the texts is shorter than 15 words, a tenth longer than 110."""
_LONGEST = 250


def item_texts(count: int, *, seed: int = 0) -> list[str]:
    """Return distinct texts: a title, and sentences up to a length in words drawn from a log-normal.

    Examples
    --------
    >>> texts = item_texts(200)
    >>> len(set(texts)), texts == item_texts(200)
    (200, True)
    """
    with tempfile.TemporaryDirectory() as folder:
        write_simulated(Path(folder), users=1, items=max(count, 200), seed=seed)
        items = pq.read_table(Path(folder) / "items.parquet")
    titles, sentences = items.column("title").to_pylist(), items.column("text").to_pylist()
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(_MEDIAN_WORDS), _SPREAD, count), 3, _LONGEST).astype(int)
    found = []
    for title, words in zip(titles[:count], lengths.tolist(), strict=True):
        story = " ".join(sentences[row] for row in rng.integers(0, len(sentences), 1 + words // 8))
        found.append(" ".join(f"{title}. {story}".split()[: max(words, len(title.split()))]))
    return found
