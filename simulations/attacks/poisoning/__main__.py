"""A plan with attackers among its clients, beside the same plan without.

    python -m simulations.attacks.poisoning digits-plain --attack replacement --share 0.2 \\
        --set federation.strategy=fedmedian

It prints the model's test accuracy and how often the backdoor works.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from security.errors import RunError, UsageError
from shared_models.resolve import resolve
from simulations.attacks.poisoning.attack import KINDS
from simulations.attacks.poisoning.play import Poisoned, play_poisoned, poisoning_of
from simulations.run import Settings
from simulations.scenarios import find_plan


def main(arguments: Sequence[str] | None = None) -> None:
    """Play both, and print a line of each."""
    parser = argparse.ArgumentParser(prog="python -m simulations.attacks.poisoning", description=__doc__)
    parser.add_argument("plan", help="a scenario's name, or a file")
    parser.add_argument("--attack", choices=KINDS, default="replacement")
    parser.add_argument("--share", type=float, default=0.2, help="of the clients who attack, from 0 to 1")
    parser.add_argument("--strength", type=float, help="of the attack; by default its kind's own")
    parser.add_argument("--keeps-norm", action="store_true", help="under secure sums: attackers clip like the others")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="another value in the plan")
    parser.add_argument("--engine", choices=("inline", "ray"), default="inline")
    given = parser.parse_args(arguments)
    try:
        plan = resolve(find_plan(given.plan, given.set))
        for share in (0.0, given.share):
            attack = poisoning_of(plan, given.attack, share, strength=given.strength, keeps_norm=given.keeps_norm)
            with tempfile.TemporaryDirectory(prefix="veil-poisoning-") as folder:
                _, found = play_poisoned(plan, attack, Path(folder) / "run", Settings(engine=given.engine))
            print(_line(found, len(attack.attackers), attack.clients), flush=True)
    except UsageError as error:
        parser.exit(2, f"{error}\n")
    except RunError as error:
        parser.exit(1, f"{error}\n")


def _line(found: Poisoned, attackers: int, clients: int) -> str:
    parts = [f"{attackers} of {clients} attack: accuracy {found.accuracy:.3f}"]
    if found.backdoor is not None:
        parts.append(f"backdoor success {found.backdoor:.3f}")
    if found.dropped:
        parts.append(f"{found.dropped} replies left out")
    if found.stopped == "failed":
        parts.append("the run could not go on")
    return ", ".join(parts)


if __name__ == "__main__":
    main()
