"""A secure sum is the plain sum of its survivors, or there is none; whoever falls out, wherever.

    python -m tests.proofs.sums --sums 1000 --seed 1

Each sum has a drawn cohort of 2 to 200 clients, drawn numbers of honest and colluding ones, a ring of 32 or 64 bits,
vectors from all over the ring, and clients that fall silent in drawn phases: few, about as many as may, or too many.
Checked, against Python's integers and against counts alone:

* a sum that is opened is exactly that of those whose vectors arrived, modulo the ring;
* in a full graph it is opened if, and only if, enough clients are left in every phase;
* in a sparse one (above 64 clients) it is not opened with fewer, and is lost for want of shares only, by name;
* otherwise it ends with a named reason, and the server keeps nothing of it.

Finished hundreds are kept in a file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from security.secure_sum.aborts import Abort
from security.secure_sum.attempt import Phase
from security.secure_sum.parameters import LARGEST_FULL_GRAPH, SumParameters, parameters_for
from tests.security.secure_sum.rounds import STEPS, Federation, Round, outcome

EACH = 100
_LENGTH = 40
_LARGEST = 200
_BEFORE_THE_SUM = STEPS[:3]


def hundred(seed: int, sums: int = EACH, largest: int = _LARGEST) -> Counter[str]:
    """So many sums that follow from a seed; how often what came of them."""
    chance, found = random.Random(seed), Counter[str]()
    for _ in range(sums):
        found[one(chance, largest)] += 1
    return found


def one(chance: random.Random, largest: int) -> str:
    """One drawn sum, checked; what came of it."""
    most = chance.choices((12, min(LARGEST_FULL_GRAPH, largest), largest), weights=(12, 7, 1))[0]
    size = chance.randint(min(LARGEST_FULL_GRAPH, largest) if most == largest else 2, most)
    corrupt = chance.choice((0, chance.randint(0, size // 3), size // 10))
    honest = chance.choice((1, (size + 1) // 2, chance.randint(1, size - corrupt)))
    federation = Federation(
        size=size,
        corrupt=min(corrupt, size - 1),
        honest=max(1, min(honest, size - corrupt)),
        length=_LENGTH,
        bits=chance.choice((32, 64)),
    )
    found = federation.parameters(size)
    gone = _gone(federation, found, chance)
    vectors = federation.vectors(chance.randrange(2**32))
    played = Round(federation=federation, vectors=vectors, gone=gone, moved=chance.random() < 0.05)
    total, abort = outcome(played)
    survivors = [name for name in federation.names if gone.get(name) not in _BEFORE_THE_SUM]
    kind = "full" if found.is_full_graph else "sparse"
    short = _short(size, gone, found)
    if total is None:
        assert played.server.phase is Phase.ABORTED, "an abort leaves nothing behind"
        assert short or (kind == "sparse" and abort in (Abort.TOO_FEW_SHARES, Abort.TOO_FEW_CLIENTS)), (
            f"lost without need: {abort} among {size} of whom {len(gone)} fell out"
        )
        return f"{kind}: not opened, {'too few left' if short else 'too few shares'}"
    # A holder that is gone takes those with it who shared with too few others: they are in no sum, by name.
    lonely = {name for name, phase in played.server.dropped.items() if phase is Phase.SHARES and name not in gone}
    assert kind == "sparse" or not lonely, "in a full graph nobody is left out"
    survivors = [name for name in survivors if name not in lonely]
    assert played.server.survivor_names == tuple(survivors), "those whose vectors arrived are in it, and no others"
    assert total.tolist() == federation.plain_sum(vectors, survivors).tolist(), "the sum is the plain sum"
    assert not short, "opened with too few"
    return f"{kind}: the plain sum, {'somebody' if gone else 'nobody'} fell out"


def _gone(federation: Federation, found: SumParameters, chance: random.Random) -> dict[str, Phase]:
    spare = federation.size - found.least
    count = chance.choice((0, chance.randint(0, spare), spare, min(federation.size, spare + chance.randint(1, 3))))
    names = chance.sample(federation.names, count)
    together = chance.choice(STEPS) if chance.random() < 0.3 else None
    return {name: together or chance.choice(STEPS) for name in names}


def _short(size: int, gone: Mapping[str, Phase], found: SumParameters) -> bool:
    """Whether too few are left in some phase, by counts alone."""
    for place, phase in enumerate(STEPS):
        left = size - sum(STEPS.index(when) <= place for when in gone.values())
        if left < (found.threshold if phase is Phase.UNMASK else found.least):
            return True
    return False


def prove(sums: int, seed: int, results: Path) -> Counter[str]:
    """Hundreds until there were so many sums; those in `results` are not repeated."""
    known: dict[int, Counter[str]] = {}
    if results.is_file():
        for line in results.read_text(encoding="utf-8").splitlines():
            data = json.loads(line)
            known[data["seed"]] = Counter(data["found"])
    total = Counter[str]()
    for number in range(seed, seed + -(-sums // EACH)):
        if number not in known:
            known[number] = hundred(number)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": number, "found": known[number]}) + "\n")
            print(f"seed {number}: {EACH} sums", flush=True)
        total += known[number]
    return total


def describe(found: Mapping[str, int], seeds: range) -> str:
    """The counts, for people."""
    lines = [f"{sum(found.values())} secure sums over 2 to {_LARGEST} clients, seeds {seeds[0]} to {seeds[-1]}"]
    lines += [f"  {times:5}  {kind}" for kind, times in sorted(found.items())]
    sparse = parameters_for(cohort=_LARGEST, corrupt=_LARGEST // 10, honest=_LARGEST // 2)
    lines.append(f"of {_LARGEST} clients each shares with {sparse.holders}; {sparse.least} must be left in every phase")
    lines.append("every sum that was opened was the plain sum of its survivors; every other ended by name\n")
    return "\n".join(lines)


def main() -> None:
    """Run the proof, print its counts and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--sums", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("build/prove-sums.jsonl"))
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence/sums.txt"))
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    found = prove(given.sums, given.seed, given.results)
    text = describe(found, range(given.seed, given.seed + -(-given.sums // EACH)))
    print(text, end="")
    given.evidence.parent.mkdir(parents=True, exist_ok=True)
    given.evidence.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
