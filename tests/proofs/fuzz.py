"""Whatever is said on the link, nobody crashes, nothing leaves unclassified, and nothing is charged without reason.

    python -m tests.proofs.fuzz --messages 100000 --seed 1

Seven kinds of hostile messages, most of them good ones spoiled, in campaigns that follow from their seeds:

* bytes to the link's parser;
* streams of frames to the server's end of the link, from a site that TLS has let in, without a network and over TLS;
* streams of frames to a site's end, from a server that TLS has let in;
* plans that a server offers to a site;
* tasks to a site's app, guard and ledger;
* replies to a server.

Each gets a fixed code or a clean refusal, or is taken for what it is. After a campaign good sites are let in and served
again, the ledger verifies from its first entry, and memory is what it was half-way. Finished campaigns are kept in a
file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from client.resources import peak_memory
from tests.proofs.fuzz_frames import over_tls, parse, to_server, to_site
from tests.proofs.fuzz_tasks import offers, replies, tasks

PARSER, SERVER, TLS, SITE = "bytes to the parser", "frames to a server", "frames to a server, TLS", "frames to a site"
OFFERS, TASKS, REPLIES = "offers to a site", "tasks to a site", "replies to a server"
_SHARES = {PARSER: 0.38, SERVER: 0.22, TLS: 0.04, SITE: 0.14, OFFERS: 0.02, TASKS: 0.1, REPLIES: 0.1}
_BUDGETS = (500.0, 8.0)  # epsilon: one that lasts, and one that is soon spent
_MOST_GROWTH = 64 << 20  # bytes that memory may grow by in a campaign's second half
_MOST_PEAK = 64 << 20  # bytes that its highest may rise by there


@dataclass
class Counts:
    """What one campaign saw.

    Attributes:
        seed: it follows from.
        outcomes: how many messages of each kind came to what.
        grown: bytes by which memory grew in its second half.
    """

    seed: int
    outcomes: dict[str, dict[str, int]] = field(default_factory=dict)
    grown: int = 0

    @property
    def messages(self) -> int:
        """Of all kinds."""
        return sum(sum(outcomes.values()) for outcomes in self.outcomes.values())

    def add(self, kind: str, found: Counter[str]) -> None:
        """More messages of a kind."""
        self.outcomes[kind] = dict(Counter(self.outcomes.get(kind, {})) + found)


def campaign(seed: int, folder: Path, *, messages: int) -> Counts:
    """About so many hostile messages of all kinds, in two halves that are alike.

    Raises:
        AssertionError: a check failed.
    """
    counts, memory, peak = Counts(seed=seed), [], peak_memory()
    with _quiet():
        for half, budget in enumerate(_BUDGETS):
            rng, place = random.Random(f"{seed} {half}"), folder / str(half)
            place.mkdir()
            number = {kind: max(20, round(messages * share / 2)) for kind, share in _SHARES.items()}
            counts.add(PARSER, parse(rng, number[PARSER]))
            counts.add(SERVER, to_server(rng, number[SERVER], place / "server.sqlite"))
            counts.add(TLS, over_tls(rng, number[TLS], place / "tls.sqlite"))
            counts.add(SITE, to_site(rng, number[SITE], place / "outbox.sqlite"))
            counts.add(OFFERS, offers(rng, number[OFFERS], place / "offers"))
            counts.add(TASKS, tasks(rng, number[TASKS], place / "tasks", epsilon=budget))
            counts.add(REPLIES, replies(rng, number[REPLIES], place / "replies"))
            memory.append(psutil.Process().memory_info().rss)
            peak = peak_memory() if half == 0 else peak
    counts.grown = memory[1] - memory[0]
    assert counts.grown < _MOST_GROWTH, f"memory grew by {counts.grown >> 20} MiB"
    above = peak_memory() - peak
    assert above < _MOST_PEAK, f"a message took {above >> 20} MiB"
    return counts


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing is printed; and Flower, which would print what strangers say, has nothing to print."""
    own, said = logging.getLogger("veil.client"), _Said()
    level = own.level
    own.setLevel(logging.CRITICAL)
    logging.getLogger("flwr").addHandler(said)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of NumPy: a model of infinities minus itself
            yield
    finally:
        own.setLevel(level)
        logging.getLogger("flwr").removeHandler(said)
    assert not said.texts, f"Flower printed: {said.texts[0][:200]}"


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def prove(messages: int, seed: int, results: Path, *, each: int = 10_000) -> list[Counts]:
    """Campaigns until there were so many messages; those in `results` are not repeated."""
    done = {}
    if results.is_file():
        found = [Counts(**json.loads(line)) for line in results.read_text(encoding="utf-8").splitlines()]
        done = {counts.seed: counts for counts in found}
    made: list[Counts] = []
    while sum(counts.messages for counts in made) < messages:
        number = seed + len(made)
        if number not in done:
            with tempfile.TemporaryDirectory() as folder:
                done[number] = campaign(number, Path(folder), messages=each)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(done[number])) + "\n")
        made.append(done[number])
        print(f"seed {number}: {made[-1].messages} messages", flush=True)
    return made


def describe(made: list[Counts]) -> str:
    """The counts by kind and outcome."""
    total: dict[str, Counter[str]] = {}
    for counts in made:
        for kind, outcomes in counts.outcomes.items():
            total.setdefault(kind, Counter()).update(outcomes)
    lines = []
    for kind, found in total.items():
        lines.append(f"{found.total():7d}  {kind}")
        lines += [f"{number:15d}  {outcome}" for outcome, number in found.most_common()]
    return "\n".join(lines)


def main() -> None:
    """Run the proof, print its counts and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--results", type=Path, default=Path("build/prove-fuzz.jsonl"))
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence/fuzz.txt"))
    given = parser.parse_args()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    made = prove(given.messages, given.seed, given.results)
    grown = max(counts.grown for counts in made) / 2**20
    text = f"{sum(counts.messages for counts in made)} hostile messages in {len(made)} campaigns, "
    text += f"seeds {made[0].seed} to {made[-1].seed}\n{describe(made)}\n"
    text += "no crash; good sites were served after each campaign; every ledger verified, and every charge was\n"
    text += f"reserved; memory grew by {grown:.1f} MiB at most in the second half of a campaign\n"
    print(text, end="")
    given.evidence.parent.mkdir(parents=True, exist_ok=True)
    given.evidence.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
