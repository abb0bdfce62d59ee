"""The table of what noise costs has a line for each kind; how fast a busy machine is, no test can say."""

import pytest
import torch

from simulations.benchmarks import noise


def test_every_kind_has_a_price_and_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    found = noise.measure(draws=2000, runs=3)
    assert len(found) == 8
    assert all(nanoseconds > 0 for nanoseconds in found.values())
    assert torch.get_num_threads() == before


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(noise, "measure", lambda: {"torch.randn, float32": 4.0, "rounded": 10.0})
    noise.main()
    assert capsys.readouterr().out.splitlines()[1:] == [
        "       4.0    1.0  torch.randn, float32",
        "      10.0    2.5  rounded",
    ]
