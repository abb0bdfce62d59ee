"""How far rounding moves an example's gradient with the rest of its batch: no further than every claim says it did."""

import pytest
import torch

from privacy.dpsgd.precision import Precision
from privacy.report.conditions import BATCH_INFLUENCE
from simulations.benchmarks import batch_influence


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_no_distance_is_above_what_is_printed(network: str, precision: Precision) -> None:
    """False alarms: none on one machine, for seeds are fixed; another machine rounds otherwise."""
    before = torch.get_num_threads()
    found = batch_influence.measure([network], seeds=(0,), epochs=(0, 1), precision=precision)
    assert set(found) == {(network, norm) for norm in batch_influence.NORMS}
    assert {len(distances) for distances in found.values()} == {2 * (2 + 3 + 5 + 8 + 16 + 17 + 3 * 24)}
    assert max(distances.max() for distances in found.values()) <= float(BATCH_INFLUENCE["most"])
    assert torch.get_num_threads() == before


def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    distances = torch.linspace(0, 1e-6, 101).double().numpy()
    monkeypatch.setattr(batch_influence, "measure", lambda names, precision: {("mlp", 1.0): distances})
    batch_influence.main([])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "   9.9e-07    1.0e-06  mlp, clipping norm 1",
        "   9.9e-07    1.0e-06  all",
    ]
