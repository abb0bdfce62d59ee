"""The figures on a server's memory are made by the server's own code, and say what its memory grows with."""

from __future__ import annotations

import gc
import json
import tracemalloc
from pathlib import Path

import pytest

from server.reduce import ExactMean
from shared_models.parameters import from_arrays
from shared_models.protocol import ARRAYS
from simulations.benchmarks import server_memory
from simulations.benchmarks.server_memory import CONTENDERS, Clients, Figure, layout, measure, play, table

MODEL = layout(500_000, 4)  # 2 MB


def most(contender: str, updates: int) -> float:
    """Most memory traced while a case is played, as a multiple of the model."""
    play(contender, updates, layout(1000, 4))  # what is imported on the way
    gc.collect()
    tracemalloc.start()
    try:
        play(contender, updates, MODEL)
        return tracemalloc.get_traced_memory()[1] / (4 * MODEL.size)
    finally:
        tracemalloc.stop()


def test_veils_mean_takes_no_more_for_more_updates_and_flowers_does() -> None:
    veil = {updates: most("veil", updates) for updates in (5, 15)}
    assert veil[15] < veil[5] + 0.3
    assert max(veil.values()) < 4.5
    assert most("flower", 15) > most("flower", 5) + 8


def test_updates_are_of_the_models_size_and_differ_from_client_to_client() -> None:
    grid, model = Clients(2, layout(40_000, 3)), layout(40_000, 3)
    one, other = (from_arrays(grid._reply(node).array_records[ARRAYS], model) for node in (1, 2))
    assert sum(value.size for value in one.values()) == 40_000
    assert not any((one[name] == other[name]).all() for name in one)
    mean = ExactMean()
    mean.add(one)
    assert 0.009 < mean.result()["layer-0.weight"].std() < 0.011


@pytest.mark.parametrize("contender", CONTENDERS)
def test_every_contender_plays(contender: str) -> None:
    play(contender, 5, layout(1000, 3))


def test_a_case_is_a_process_of_its_own() -> None:
    found = measure("veil", 3, 100_000, 2)
    assert found.model == 400_000
    assert found.peak > found.model


def test_the_table_and_the_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        server_memory, "measure", lambda name, updates, values, _: Figure(name, updates, 4, 10 * updates)
    )
    server_memory.main(["--contenders", "veil", "krum", "--json", str(tmp_path / "new" / "f.json")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["│", "veil", "│", "50.00", "│", "150.00", "│"] in rows
    assert ["│", "krum", "│", "50.00", "│", "│"] in rows
    assert [figure["times"] for figure in json.loads((tmp_path / "new" / "f.json").read_text())] == [50, 150, 50]
    assert table([]).row_count == 0
