"""The server's own test data: a file that its `server.toml` names, or the test part of a set that comes with Veil.

Here, because a server knows nothing of data sets, and a data set nothing of servers.
"""

from __future__ import annotations

from pathlib import Path

from client.datasets.registry import load, load_file
from client.workplace import split_key
from server.daemon import LoadTest
from server.evaluation import TestData
from server.settings import ServerSettings
from shared_models.cards import KNOWN
from shared_models.features.apply import model_inputs
from shared_models.plan import Plan


def own_test_data(settings: ServerSettings) -> LoadTest:
    """What a server with these settings judges a plan's model on; it gives None where it has nothing for the plan."""

    def load_test(plan: Plan) -> TestData | None:
        own = settings.test_data(plan.data.name)
        if own is not None:
            # All of the file is for testing: no person is bounded, nothing is split off by the key.
            data = plan.data.model_copy(update={"person_column": None, "max_rows_per_person": None})
            records = load_file(data, kind=own.format, path=Path(own.path), split_key=b"not used")
        elif plan.data.name in KNOWN:
            records = load(plan.data, split_key=split_key(plan)).test
        else:
            return None
        return TestData(model_inputs(plan, records.x, cached=False), records.y)

    return load_test
