"""Attackers among twenty clients, and which defence holds up to which share of them.

    python -m simulations.studies.poisoning --out docs/evidence/poisoning.txt

Handwritten digits, spread unevenly, a small network, 15 rounds. Each attack meets each defence with 10 to 40 % of the
clients attacking in every round. A defence is set up once, for the 40 % or as near as it says it can bear, for nobody
knows how many attackers there are. It *holds* a share if the accuracy is within 5 points of its own without attackers,
and the backdoor works on less than 20 % of pictures, at this share and all smaller ones. Under sums and under client ×
central there is little noise (epsilon 2000 is no privacy to speak of): what is looked at is the clipping. Local DP is
at epsilon 8. All noise is reproducible.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_file import plan_from, write_plan
from simulations.attacks.poisoning.attack import KINDS, Kind
from simulations.attacks.poisoning.play import play_poisoned, poisoning_of, resolved
from simulations.kept import keep, read_kept
from simulations.run import Settings
from simulations.scenarios import find_plan
from simulations.studies.poisoning_pictures import drawings
from simulations.studies.poisoning_tables import SHARES, Result, report
from simulations.studies.study import side_by_side

_STRENGTHS: Final[dict[Kind, float]] = {"little": 1.5}
"""Where it is not the kind's own: Baruch et al. took 1.5 in their experiments, which their z_max here is far below."""

_BASE: Final = (
    "data.partition={ kind = 'dirichlet', clients = 20, alpha = 1.0 }",
    "model.name=mlp",
    "model.options={ hidden = [32] }",
    "training.steps=5",
    "training.company=20",
    "federation.rounds=15",
    "federation.weighting=uniform",
    "evaluation.every=15",
)
_CLIPPED: Final = (
    "privacy.unit=client",
    "privacy.noise=reproducible",
    "privacy.epsilon=2000.0",
    "privacy.delta=1e-3",
    "privacy.clipping_norm=1.0",
)
_SUMS: Final = (*_CLIPPED, "privacy.trust=distributed", "secure_sum={ honest = 0.5, corrupt = 0.1, masks = false }")
_LOCAL: Final = (
    "privacy.trust=local",
    "privacy.unit=example",
    "privacy.noise=reproducible",
    "privacy.epsilon=8.0",
    "privacy.delta=1e-5",
    "privacy.clipping_norm=1.0",
    "training.sample_rate=0.25",
    "training.learning_rate=0.3",
)


@dataclass(frozen=True)
class Defence:
    """How a plan is defended.

    Attributes:
        settings: of the plan, as after --set.
        keeps_norm: whether attackers clip what they put into a sum.
    """

    settings: tuple[str, ...] = ()
    keeps_norm: bool = False


def _strategy(name: str, options: str = "{}") -> Defence:
    return Defence((f"federation.strategy={name}", f"federation.strategy_options={options}"))


DEFENCES: Final[dict[str, Defence]] = {
    "fedavg": Defence(),
    "normbound": _strategy("normbound"),
    "krum": _strategy("krum", "{ num_malicious_nodes = 8 }"),
    "multikrum": _strategy("multikrum", "{ num_malicious_nodes = 8, num_nodes_to_select = 12 }"),
    "bulyan": _strategy("bulyan", "{ num_malicious_nodes = 4 }"),
    "fedmedian": _strategy("fedmedian"),
    "fedtrimmedavg": _strategy("fedtrimmedavg", "{ beta = 0.4 }"),
    "central clipping": Defence((*_CLIPPED, "privacy.trust=central")),
    "secure sum, clipped": Defence(_SUMS, keeps_norm=True),
    "secure sum": Defence(_SUMS),
    "local DP": Defence(_LOCAL),
    "local DP, fedmedian": Defence((*_LOCAL, "federation.strategy=fedmedian")),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the study.

    Attributes:
        attack: kind of attack.
        defence: name of the defence.
        share: of attackers; 0 stands for every attack.
        seed: of the plan.
    """

    attack: Kind
    defence: str
    share: float
    seed: int

    def plan(self) -> Plan:
        """What is played, unresolved."""
        return find_plan("digits-plain", (*_BASE, *DEFENCES[self.defence].settings))


def cells(
    seeds: Sequence[int],
    *,
    attacks: Sequence[Kind] = KINDS,
    defences: Sequence[str] = tuple(DEFENCES),
    shares: Sequence[float] = SHARES,
) -> list[Cell]:
    """The study's runs: each defence without attackers, then each attack."""
    return [
        Cell(attack=attack, defence=defence, share=share, seed=seed)
        for seed in seeds
        for attack, share in (
            (KINDS[0], 0.0),
            *((attack, share) for share in sorted(shares, reverse=True) for attack in attacks),
        )
        for defence in defences
    ]


def play(
    wanted: Sequence[Cell], folder: Path, *, processes: int = 1, say: Callable[[str], None] = lambda _: None
) -> list[Result]:
    """Play what isn't played yet; the results in the order of the cells.

    Raises:
        UsageError, RunError: a cell can't be played; those before it are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.jsonl"
    known = {_key(one): one for one in read_kept(kept, Result)}
    keys = _keys(wanted)
    missing = [cell for cell, key in zip(wanted, keys, strict=True) if key not in known]
    given = [(cell, write_plan(cell.plan())) for cell in missing]
    for done, result in enumerate(side_by_side(_run, given, processes), 1):
        known[_key(result)] = result
        keep(kept, result)
        say(
            f"{done}/{len(missing)}  {result.attack}  {result.defence}  {result.share:.0%}  "
            f"{result.accuracy:.3f}  {result.backdoor:.3f}  {result.seconds:.0f} s"
        )
    return [known[key] for key in keys]


def played(wanted: Sequence[Cell], folder: Path) -> list[Result]:
    """What was played of these cells before."""
    known = {_key(one): one for one in read_kept(folder / "results.jsonl", Result)}
    return [known[key] for key in _keys(wanted) if key in known]


def _key(one: Result) -> tuple[str, str, float, int, str]:
    return one.attack, one.defence, one.share, one.seed, one.digest


def _keys(wanted: Sequence[Cell]) -> list[tuple[str, str, float, int, str]]:
    of: dict[tuple[str, int], str] = {}
    for cell in wanted:
        if (cell.defence, cell.seed) not in of:
            of[cell.defence, cell.seed] = resolved(cell.plan(), cell.seed).digest()
    return [(cell.attack, cell.defence, cell.share, cell.seed, of[cell.defence, cell.seed]) for cell in wanted]


def _run(cell: Cell, text: str) -> Result:
    import tomllib

    begun = time.monotonic()
    plan = resolved(plan_from(tomllib.loads(text), where=cell.defence), cell.seed)
    poisoning = poisoning_of(
        plan,
        cell.attack,
        cell.share,
        strength=_STRENGTHS.get(cell.attack),
        keeps_norm=DEFENCES[cell.defence].keeps_norm,
    )
    place = Path(tempfile.mkdtemp(prefix="veil-study-", dir=os.environ.get("TMPDIR")))
    try:
        _, found = play_poisoned(plan, poisoning, place / "run", Settings(engine="inline"))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert found.backdoor is not None  # digits are pictures
    return Result(
        attack=cell.attack,
        defence=cell.defence,
        share=cell.share,
        seed=cell.seed,
        digest=plan.digest(),
        stopped=found.stopped,
        accuracy=found.accuracy,
        backdoor=found.backdoor,
        dropped=found.dropped,
        seconds=time.monotonic() - begun,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study; write its tables, and its pictures beside them."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.poisoning", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--attacks", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--defences", nargs="*", choices=list(DEFENCES), default=list(DEFENCES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/studies/poisoning"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only-report", action="store_true", help="tell of what was played, and play nothing")
    given = parser.parse_args(arguments)
    wanted = cells(range(1, 1 + given.seeds), attacks=given.attacks, defences=given.defences)
    if given.only_report:
        results = played(wanted, given.folder)
        if not results:
            raise UsageError(f"{given.folder}: nothing was played of this; leave --only-report out")
    else:
        results = play(wanted, given.folder, processes=given.processes, say=print)
    text = report(results)
    print(text)
    if given.out is not None:
        given.out.write_text(text)
        for name, drawing in drawings(results).items():
            given.out.with_name(f"{given.out.stem}{name}.svg").write_text(drawing)


if __name__ == "__main__":
    main()
