"""3,000 sentences of reviews from three sites, half of them good (Kotzias et al. 2015, "From group to individual labels
using deep features"), UCI, CC BY 4.0. The sites are natural clients."""

from __future__ import annotations

import json
from typing import Final

import numpy as np

from client.datasets.records import Parts
from client.datasets.sources import refuse_path
from client.datasets.texts import text_records
from shared_models.cards import DataCard
from shared_models.downloads.fetch import fetched
from shared_models.plan_data import DataPlan

SITES: Final = ("amazon", "imdb", "yelp")


def load(data: DataPlan, card: DataCard) -> Parts:
    """All sentences, tokens x (n, places), with the column `source`; there is no test part.

    Raises:
        UsageError: it isn't fetched yet, or damaged; or the plan names a column that isn't there.
    """
    del card
    refuse_path(data)
    files = fetched("sentences")
    rows = [
        (row["text"].strip(), row["class"], site)
        for site in SITES
        for row in json.loads(files[f"{site}.json"].read_bytes())
        if row["text"] is not None and row["class"] is not None
    ]
    texts, labels, sites = zip(*rows, strict=True)
    columns = {"source": np.array(sites, dtype=np.str_)}
    return text_records(texts, np.array(labels, dtype=np.int64), columns, data, source="sentences"), None
