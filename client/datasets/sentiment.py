"""Sentences rated by people from -4 to 4: of reviews, films, editorials and tweets (Hutto and Gilbert 2014, "VADER: a
parsimonious rule-based model for sentiment analysis of social media text"), MIT.

The four sources are natural clients. A sentence of a rating between -0.5 and 0.5 says neither and is left out.
"""

from __future__ import annotations

import html
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from client.datasets.records import Parts
from client.datasets.sources import refuse_path
from client.datasets.texts import text_records
from shared_models.cards import DataCard
from shared_models.downloads.fetch import fetched
from shared_models.plan_data import DataPlan

SOURCES: Final = {
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "films": "movieReviewSnippets_GroundTruth.txt",
    "editorials": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
_NEITHER: Final = 0.5


def load(data: DataPlan, card: DataCard) -> Parts:
    """Sentences of a clear rating, tokens x (n, places), with the column `source`; there is no test part.

    Raises:
        UsageError: it isn't fetched yet, or damaged; or the plan names a column that isn't there.
    """
    del card
    refuse_path(data)
    files = fetched("sentiment")
    texts: list[str] = []
    labels, sources = [], []
    for source, name in SOURCES.items():
        sentences, ratings = _rated(files[name])
        clear = np.flatnonzero(np.abs(ratings) >= _NEITHER)
        texts += [sentences[row] for row in clear]
        labels.append((ratings[clear] > 0).astype(np.int64))
        sources += [source] * len(clear)
    columns = {"source": np.array(sources, dtype=np.str_)}
    return text_records(texts, np.concatenate(labels), columns, data, source="sentiment"), None


@cache
def _rated(path: Path) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Sentences and ratings of a file: number, rating and sentence, with tabs between."""
    rows = [line.split("\t", 2) for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    texts = tuple(html.unescape(text).strip() for _, _, text in rows)
    return texts, np.array([float(rating) for _, rating, _ in rows])
