"""Proof by chaos: a federation of real processes is harmed in every way there is, and plays its plan all the same.

    python -m tests.proofs.chaos --faults 300 --seed 1

A campaign is one plan, four sites and a server, and a drawn sequence of faults: server and sites killed (signal 9) at
random moments, streams cut, wires and processes that stand still, everybody killed and started in another order, full
disks, clocks that jump by hours, certificates that expire, and in every third campaign a network that loses 5 % of
its packets. Checked:

* every campaign ends, and no more than seven minutes pass between two rounds;
* without privacy the model is the simulation's, bit for bit;
* with privacy every ledger verifies against its anchors, has at any moment charged at least what left its site, and at
  the end each planned round exactly once; what was spent is within the budget, and every site's statement is verified;
* no process ends for another reason than what was done to it, or with a trace.

Finished campaigns are kept in a file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.proofs.chaos_campaign import STYLES, Counts, campaign
from tests.proofs.chaos_faults import KINDS
from tests.proofs.chaos_world import LOSS

EACH = 50


def prove(faults: int, seed: int, results: Path, *, each: int = EACH) -> list[Counts]:
    """Campaigns until there were so many faults; those in `results` are not repeated."""
    made: list[Counts] = []
    while sum(sum(counts.faults.values()) for counts in made) < faults:
        made.append(one(seed + len(made), results, each=each))
        print(describe(made[-1:]), flush=True)
    return made


def one(seed: int, results: Path, *, each: int = EACH) -> Counts:
    """The campaign of a seed: from `results`, or played and written there."""
    known = {}
    if results.is_file():
        found = [Counts(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]
        known = {counts.seed: counts for counts in found}
    if seed not in known:
        folder = Path(tempfile.mkdtemp(prefix=f"veil-chaos-{seed}-"))  # left behind by one that fails: its logs say why
        known[seed] = campaign(seed, folder / "pilot", style=STYLES[seed % len(STYLES)], faults=each, say=_say)
        shutil.rmtree(folder)
        with results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(known[seed])) + "\n")
    return known[seed]


def describe(made: Sequence[Counts]) -> str:
    """The counts, in words."""
    faults, ends, told = (
        sum((Counter(getattr(one, name)) for one in made), Counter()) for name in ("faults", "ends", "told")
    )
    styles = Counter(one.style for one in made)
    passed, lost = sum(one.passed for one in made), sum(one.lost for one in made)
    private = [one for one in made if one.style != "plain"]
    lines = [
        f"{len(made)} campaigns ({', '.join(f'{styles[style]} {style}' for style in STYLES if styles[style])}), "
        f"{sum(one.rounds for one in made)} rounds, {sum(one.seconds for one in made) / 60:.1f} minutes in all",
        f"{faults.total()} faults:",
        *(f"{faults[kind]:6}  {kind}" for kind in KINDS if faults[kind]),
        f"{sum(one.starts for one in made)} processes were started; "
        f"ended by themselves for what was done to them, and started again: {_listed(ends)}",
        f"faults that runs tell of: {_listed(told)}",
        f"sites that were away at the end and were told to stop: {sum(one.late for one in made)}",
    ]
    if lost:
        lines.append(f"{lost} of {passed + lost} packets lost ({lost / (passed + lost):.1%}; drawn: {LOSS:.0%})")
    if private:
        lines.append(
            f"{sum(one.charged for one in private)} rounds charged by sites, {sum(4 * one.rounds for one in private)} "
            f"planned; {sum(one.checks for one in private)} looks into ledgers; epsilon "
            f"{max(one.epsilon for one in private):.4f} of {max(one.budget for one in private):g}"
        )
    unavailable = sorted({kind for one in made if one.style != "lossy" for kind in one.unavailable})
    if unavailable:
        lines.append(f"not to be had on this machine: {', '.join(unavailable)}")
    return "\n".join(lines)


def _listed(found: Counter[str]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in sorted(found.items())) or "none"


def _say(text: str) -> None:
    print(text, flush=True)


def _end(*_: object) -> None:
    """What was started and mounted is taken down first, and nothing interrupts that."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> None:
    """Run the proof, print its counts and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--each", type=int, default=EACH, help="faults a campaign")
    parser.add_argument("--only", type=int, default=None, metavar="SEED", help="one campaign, for the file of results")
    parser.add_argument("--results", type=Path, default=Path("build/prove-chaos.jsonl"))
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence/chaos.txt"))
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    given.results.parent.mkdir(parents=True, exist_ok=True)
    if given.only is not None:
        print(describe([one(given.only, given.results, each=given.each)]))
        return
    made = prove(given.faults, given.seed, given.results, each=given.each)
    text = f"seeds {made[0].seed} to {made[-1].seed}\n{describe(made)}\n"
    text += "every run ended with the right result; no ledger ever under-counted; nothing hung\n"
    print(text, end="")
    given.evidence.parent.mkdir(parents=True, exist_ok=True)
    given.evidence.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
