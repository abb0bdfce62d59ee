"""Fashion-MNIST without a trusted server: a linear head on public features, by joint steps over secure sums.

    python -m simulations.studies.fashion --seeds 3 --out docs/evidence/fashion.txt

Ten and a hundred clients, three epsilons, the noise of all clients counted or of 80 % of them; local DP at the same
epsilons and no privacy beside it. Steps, clipping norms and learning rates were chosen on 10,000 images held out
of the training set; the test set is looked at here alone. Sums are made without masks, which
changes no number; `--masks` plays the whole protocol.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from simulations.scenarios import find_plan
from simulations.studies.study import Cell, Result, play

CLIENTS = (10, 100)
EPSILONS = (1.0, 3.0, 8.0)
HONEST = (1.0, 0.8)
RECORDS = 60_000

# Steps, clipping norm and learning rate, by epsilon; under local privacy, where noise grows with clients, by them too.
_JOINT = {1.0: (120, 2.0, 0.18), 3.0: (120, 2.0, 0.45), 8.0: (120, 2.0, 1.1)}
_LOCAL = {
    10: {1.0: (80, 2.0, 0.1), 3.0: (80, 2.0, 0.22), 8.0: (80, 2.0, 0.4)},
    100: {1.0: (80, 2.0, 0.03), 3.0: (80, 2.0, 0.08), 8.0: (80, 2.0, 0.18)},
}


def cells(
    seeds: Sequence[int],
    *,
    clients: Sequence[int] = CLIENTS,
    epsilons: Sequence[float] = EPSILONS,
    honest: Sequence[float] = HONEST,
    masks: bool = False,
) -> list[Cell]:
    """The study's runs: each kind with each seed."""
    found = []
    for number in clients:
        size = (f"data.partition.clients={number}", f"training.expected_batch_size={RECORDS // number}")
        rows = {}
        for epsilon in epsilons:
            for part in honest:
                corrupt = 0.0 if part == 1 else 0.1
                sums = (
                    f"secure_sum.honest={part}",
                    f"secure_sum.corrupt={corrupt}",
                    f"secure_sum.masks={_toml(masks)}",
                )
                rows[joint(number, epsilon, part)] = (*_settings(epsilon, *_JOINT[epsilon]), *sums)
            rows[local(number, epsilon)] = (
                *_settings(epsilon, *_LOCAL[number][epsilon]),
                *("privacy.trust=local", "secure_sum=", "training.steps=1"),
            )
        if number == min(clients):
            rows[PLAIN] = (*_settings(400, 120, 5.0, 0.5), f"secure_sum.masks={_toml(False)}")
        for name, overrides in rows.items():
            plan = find_plan("fashion-secure", (*size, *overrides))
            found += [Cell(name=name, plan=plan, seed=seed) for seed in seeds]
    return found


PLAIN = "no noise to speak of (epsilon 400)"


def joint(clients: int, epsilon: float, honest: float) -> str:
    """Of a row."""
    return f"{clients} clients, epsilon {epsilon:g}, joint, {honest:.0%} honest"


def local(clients: int, epsilon: float) -> str:
    """Of a row."""
    return f"{clients} clients, epsilon {epsilon:g}, local"


def _settings(epsilon: float, steps: int, clip: float, rate: float) -> tuple[str, ...]:
    return (
        f"privacy.epsilon={epsilon}",
        f"privacy.clipping_norm={clip}",
        f"training.learning_rate={rate}",
        f"federation.rounds={steps}",
        f"evaluation.every={steps}",
    )


def _toml(value: bool) -> str:
    return "true" if value else "false"


def report(results: Sequence[Result]) -> str:
    """The study as text."""
    heads = (
        f"{head:>{wide}s}" for head, wide in (("mean", 7), ("least", 7), ("most", 7), ("epsilon", 9), ("noise", 8))
    )
    lines = [f"{'Fashion-MNIST, test accuracy':44s}{''.join(heads)}{'seconds':>9s}{'MB up':>8s}"]
    for name in dict.fromkeys(one.name for one in results):
        rows = [one for one in results if one.name == name]
        scores = [100 * one.final["accuracy"] for one in rows]
        spent = max(one.epsilon or 0.0 for one in rows)
        lines.append(
            f"{name:44s}{statistics.fmean(scores):7.2f}{min(scores):7.2f}{max(scores):7.2f}{spent:9.4f}"
            f"{rows[0].noise_multiplier or 0:8.3f}{statistics.median(one.seconds for one in rows):9.0f}"
            f"{(rows[0].up or 0) / 1e6:8.0f}"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study and write its table."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.fashion", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="*", default=list(CLIENTS))
    parser.add_argument("--masks", action="store_true", help="play the whole protocol of secure sums")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/studies/fashion"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    made = cells(range(1, 1 + given.seeds), clients=given.clients, masks=given.masks)
    results = play(made, given.folder, processes=given.processes, say=print)
    text = report(results)
    print(text)
    if given.out is not None:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
