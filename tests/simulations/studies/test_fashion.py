"""The study of Fashion-MNIST: its cells are what its table says; they are too long to be played here."""

from __future__ import annotations

from simulations.studies.fashion import CLIENTS, EPSILONS, HONEST, PLAIN, RECORDS, cells, joint, local, report
from simulations.studies.study import Result


def test_there_is_a_row_for_each_question() -> None:
    rows = {cell.name for cell in cells([1])}
    expected = {joint(n, e, h) for n in CLIENTS for e in EPSILONS for h in HONEST}
    assert rows == expected | {local(n, e) for n in CLIENTS for e in EPSILONS} | {PLAIN}


def test_the_noise_is_that_of_the_honest_and_the_divisor_public() -> None:
    for cell in cells([3]):
        plan = cell.plan
        clients = plan.data.partition.clients  # type: ignore[union-attr]
        assert plan.training.expected_batch_size * clients == RECORDS
        assert plan.privacy.delta == 1e-5
        if plan.privacy.trust == "distributed" and "%" in cell.name:
            assert f"{plan.secure.honest:.0%} honest" in cell.name
            assert f"epsilon {plan.privacy.epsilon:g}" in cell.name
            assert plan.secure.corrupt == (0.0 if plan.secure.honest == 1 else 0.1)


def test_the_table_has_means_and_extremes() -> None:
    rows = [
        Result(
            name="row",
            seed=seed,
            digest="",
            final={"accuracy": score},
            epsilon=3.0,
            noise_multiplier=12.4,
            seconds=60.0,
            up=2_000_000,
            down=0,
        )
        for seed, score in enumerate((0.91, 0.912, 0.914))
    ]
    (_, line) = report(rows).splitlines()
    assert line.split() == ["row", "91.20", "91.00", "91.40", "3.0000", "12.400", "60", "2"]
