"""How the suite is spread over processes: a file stays together, and what starts engines of its own takes turns.

So do tests that start a server and its sites; but those keep to themselves well enough beside an engine.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: with two threads in each of two processes, two cores do little but wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before gRPC is imported: its handlers at a fork abort some of the processes that tests start.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

_HERE = Path(__file__).parent
_FIRST = {"engines": 0, "processes": 1}
_PROCESSES = (_HERE / "e2e", _HERE / "proofs")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests; two clusters that start at once on a small machine would time each other out.

    What takes turns is begun with: it would be waited for at the end. Then come the files with most tests.
    """
    groups: dict[pytest.Item, str] = {}
    for item in items:
        if item.get_closest_marker("ray"):
            group = "engines"
        elif any(folder in item.path.parents for folder in _PROCESSES):
            group = "processes"
        else:
            group = str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
        groups[item] = group
    sizes = Counter(groups.values())
    items.sort(key=lambda item: (_FIRST.get(groups[item], len(_FIRST)), -sizes[groups[item]], groups[item]))


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ray on this machine, started once, with places for four actors whatever the machine has.

    It gives the path of a marker by which a client of the faulty app dies just once.
    """
    marker = tmp_path_factory.mktemp("marker") / "died"
    os.environ["VEIL_TEST_MARKER"] = str(marker)
    import ray

    import simulations.ray_workers  # switches Ray's telemetry off before it is imported  # noqa: F401

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield marker
    ray.shutdown()
    del os.environ["VEIL_TEST_MARKER"]
