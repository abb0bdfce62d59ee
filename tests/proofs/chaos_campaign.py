"""One plan played from its beginning to its end while everything that can go wrong does, and what must hold then.

Which kinds of harm come, in which order and to whom follows from a seed; the instants are the machine's. A campaign
waits for signs of life in the files that the programs write themselves, and fails if there are none for seven minutes.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np

from privacy.ledger import Ledger, default_anchors
from privacy.ledger.check import verify
from security.errors import RunError
from server.run_folder import RunFolder, read_parameters
from shared_models.plan import Plan
from simulations.run import Settings, start_run
from tests.proofs.chaos_faults import KINDS, Repair
from tests.proofs.chaos_world import SERVER, World, chaos_plan, world
from tests.proofs.lossy_network import unavailable

Style = Literal["plain", "private", "lossy"]
"""Without privacy; with it; with it, over a network that loses packets."""

STYLES: Final[tuple[Style, ...]] = ("private", "plain", "lossy")
_LOOK: Final = 0.05  # seconds between two looks
_PATIENCE: Final = 420.0  # without a round: a site that called in vain may wait five minutes until it calls again
_AHEAD: Final = 8  # faults that may come before their turn, while there is nobody fit for those before them
_BETWEEN: Final = 4  # faults, until one more round must have been played
_PAUSE: Final = 1.5  # longest, before the harm: its moment is to be any
_AFTERWARDS: Final = 90.0  # that a process may end of a harm after it was put right
_ROUNDS_A_FAULT: Final = 2


@dataclass(kw_only=True)
class Counts:
    """What one campaign saw.

    Attributes:
        seed, style: it follows from.
        seconds: it took.
        rounds: of the plan, all played.
        faults: how often each kind of harm was done.
        starts: of processes.
        ends: how often a process ended by itself for a harm, with its exit code, and was started again.
        told: faults in the run's summary, by reason.
        unavailable: kinds that this machine can't do.
        charged: rounds that the sites' ledgers have charged, all together; 0 without privacy.
        checks: of ledgers, on the way and at the end.
        epsilon, budget: the largest spent, and what each site may spend.
        passed, lost: packets of the network that loses some.
        late: sites that weren't there when the server said that all is done, and were told to end.
    """

    seed: int
    style: Style
    seconds: float = 0.0
    rounds: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    starts: int = 0
    ends: dict[str, int] = field(default_factory=dict)
    told: dict[str, int] = field(default_factory=dict)
    unavailable: list[str] = field(default_factory=list)
    charged: int = 0
    checks: int = 0
    epsilon: float = 0.0
    budget: float = 0.0
    passed: int = 0
    lost: int = 0
    late: int = 0


def campaign(
    seed: int,
    folder: Path,
    *,
    style: Style,
    faults: int,
    rounds: int | None = None,
    say: Callable[[str], None] = print,
) -> Counts:
    """Play one plan with so many faults.

    Args:
        seed: of the choice of faults.
        folder: new; holds all that the processes write.
        style: of the plan and the network.
        faults: how many; fewer if the plan is over before.
        rounds: of the plan; by default twice as many as faults.
        say: is told what happens.

    Raises:
        AssertionError: something did not hold.
    """
    plan = chaos_plan(rounds or _ROUNDS_A_FAULT * faults, private=style != "plain")
    begun = time.monotonic()
    missing = unavailable() if style == "lossy" else None
    if missing is not None:
        style = "private"
    with world(folder, plan, lossy=seed if style == "lossy" else None) as found:
        counts = Counts(seed=seed, style=style, rounds=plan.federation.rounds)
        chaos = Chaos(found, random.Random(seed), counts, say)
        try:
            chaos.play(faults)
        except (AssertionError, RunError) as error:
            raise AssertionError(f"seed {seed}, {style}: {error}\n{chaos.last_words()}") from error
        if found.network is not None:
            counts.passed, counts.lost = found.network.passed, found.network.lost
            assert counts.lost > 0, "the network lost no packet"
        if missing is not None:
            counts.unavailable.append(f"a network that loses packets ({missing})")
        counts.starts = found.starts
    counts.seconds = round(time.monotonic() - begun, 1)
    return counts


class Chaos:
    """Harms a world while it plays a plan, and looks after it."""

    def __init__(self, found: World, chance: random.Random, counts: Counts, say: Callable[[str], None]) -> None:
        self.world = found
        self.chance = chance
        self.counts = counts
        self._begun = time.monotonic()
        self._tell = say
        self._repairs: list[Repair] = []
        self._harmed: dict[str, float] = {}  # until when a process may end by itself
        self._rounds: list[int] = []
        self._seen = 0  # of them, when the server was last harmed
        self._since = time.monotonic()  # the last sign of life

    def play(self, faults: int) -> None:
        """The whole campaign."""
        for name in (SERVER, *self.world.sites):
            self.world.start(name)
        self._wait(lambda: bool(self._rounds), "the first round")
        waiting = self._drawn(faults)
        while waiting and self._harm(waiting):
            if len(waiting) % _BETWEEN == 0:  # the plan is to get on meanwhile
                seen = len(self._rounds)
                self._wait(lambda seen=seen: len(self._rounds) > seen or self._is_over, "a round")  # type: ignore[misc]
        self._wait(lambda: self._is_over, "the end of the run")
        self._finish()
        self._check_all()

    def last_words(self) -> str:
        """What every process printed and logged last."""
        pilot, found = self.world.pilot, []
        for name in (SERVER, *self.world.sites):
            log = pilot.server.log if name == SERVER else pilot.site(name).log
            lines = log.read_text(encoding="utf-8").splitlines()[-8:] if log.exists() else []
            found += [f"--- {name}", pilot.output(name)[-1500:], *lines]
        return "\n".join(found)

    # --- harming

    def _drawn(self, faults: int) -> list[str]:
        """Kinds by weight, in any order."""
        able = {name: kind for name, kind in KINDS.items() if kind.targets(self.world)}
        self.counts.unavailable = [name for name in KINDS if name not in able]
        total = sum(kind.weight for kind in able.values())
        sure = [name for name, kind in able.items() for _ in range(faults * kind.weight // total)]
        more = self.chance.choices(list(able), [kind.weight for kind in able.values()], k=faults - len(sure))
        return self.chance.sample([*sure, *more], faults)

    def _harm(self, waiting: list[str]) -> bool:
        """Do the first of the faults that wait for which there is somebody fit; whether the plan was still played."""
        found: list[tuple[str, str]] = []

        def look() -> bool:
            found[:] = [(name, target) for name in waiting[:_AHEAD] for target in self._fit(name)]
            return bool(found) or self._is_over

        self._wait(look, "somebody to harm")
        self._pause(self.chance.uniform(0.0, _PAUSE))
        self._wait(look, "somebody to harm")
        if self._is_over:
            return False
        name = found[0][0]
        target = self.chance.choice([one for kind, one in found if kind == name])
        waiting.remove(name)
        kind = KINDS[name]
        self._say(f"{name}: {target}")
        repair = kind.do(self.world, target, self.chance)
        if repair is not None:
            self._repairs.append(repair)
        self.counts.faults[name] = self.counts.faults.get(name, 0) + 1
        for one in {"own": (target,), "all": (SERVER, *self.world.sites)}.get(kind.exits, ()):
            self._harmed[one] = time.monotonic() + _AFTERWARDS
        if target == SERVER:
            self._seen = len(self._rounds)
        self._check_on_the_way()
        return True

    def _fit(self, name: str) -> list[str]:
        """Whom it can be done to now: who is at work, and is not being harmed already."""
        busy = {one for repair in self._repairs for one in repair.targets}
        if name == "restarted in another order" and busy:
            return []
        fit = []
        for target in KINDS[name].targets(self.world):
            if target in busy or self.world.exit_code(target) is not None:
                continue
            # The server is at work if it has played a round since it was last harmed.
            if len(self._rounds) > self._seen if target == SERVER else self.world.is_connected(target):
                fit.append(target)
        return fit

    # --- looking after it

    @property
    def _is_over(self) -> bool:
        entry = self.world.entry()
        return entry is not None and entry["state"] == "done"

    def _look(self) -> None:
        """Put right what is due, start again what has ended, and see whether there is life."""
        for repair in [one for one in self._repairs if one.due()]:
            self._repairs.remove(repair)
            repair.mend()
            for target in repair.targets & self._harmed.keys():
                self._harmed[target] = time.monotonic() + _AFTERWARDS
        rounds = self.world.rounds()
        if rounds != self._rounds:
            # The last one may go again: its line is written before the checkpoint that makes it count.
            kept = self._rounds[: max(len(rounds), len(self._rounds) - 1)]
            assert rounds[: len(kept)] == kept, f"rounds were lost that were written down: {self._rounds}, {rounds}"
            if len(rounds) > len(self._rounds):
                self._since = time.monotonic()
            self._rounds = rounds
        if not self._is_over:
            self._start_again()
        silent = time.monotonic() - self._since
        assert silent < _PATIENCE, f"nothing has happened for {silent:.0f} s after round {len(rounds)}"
        time.sleep(_LOOK)

    def _start_again(self) -> None:
        for name in (SERVER, *self.world.sites):
            code = self.world.exit_code(name)
            if code is None or self._disk_is_full(name) or (name == SERVER and self._is_over):
                continue
            if code == 0 and self._is_over:
                continue
            words = self.world.pilot.output(name).rstrip().rpartition("\n")[2]
            assert time.monotonic() < self._harmed.get(name, 0.0), f"{name} ended with {code} for no reason: {words}"
            self._say(f"{name} ended with {code}: {words}")
            key = f"{'server' if name == SERVER else 'site'}, exit {code}"
            self.counts.ends[key] = self.counts.ends.get(key, 0) + 1
            self.world.start(name)

    def _disk_is_full(self, name: str) -> bool:
        return name in self.world.disks and self.world.disks[name].exists()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            try:
                self._look()
            except AssertionError as error:
                raise AssertionError(f"while waiting for {what}: {error}") from error

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._wait(lambda: time.monotonic() >= end, "nothing")

    def _finish(self) -> None:
        """Put everything right, and let everybody end."""
        for repair in self._repairs:
            repair.mend()
        self._repairs.clear()
        pilot = self.world.pilot
        code = pilot.wait(SERVER, _PATIENCE)
        explained = time.monotonic() < self._harmed.get(SERVER, 0.0)
        assert code in (0, -9) or explained, f"the server ended with {code}"
        for name in self.world.sites:
            try:
                code = pilot.wait(name, 10)
            except RunError:  # it wasn't there when the server said goodbye, so it goes on calling
                self.counts.late += 1
                code = pilot.stop(name)
            explained = time.monotonic() < self._harmed.get(name, 0.0)
            # One that was killed by the last fault may not have come up far enough to heed a signal.
            assert code == 0 or explained or (code == -15 and not self._was_up(name)), f"{name} ended with {code}"

    def _was_up(self, name: str) -> bool:
        process = self.world.pilot.processes[name]
        return f'"process": {process.pid},' in self.world.pilot.site(name).status.read_text(encoding="utf-8")

    # --- what must hold

    def _check_on_the_way(self) -> None:
        """No ledger has charged less than left its site."""
        if not self.world.plan.is_private:
            return
        for name in self.world.sites:
            if not self._disk_is_full(name):
                rounds = len(self.world.rounds())
                charged = self._charged(name)
                assert charged >= rounds, f"{name}: {rounds} rounds have left it, its ledger has charged {charged}"

    def _charged(self, name: str) -> int:
        path, plan = self.world.pilot.site(name).ledger, self.world.plan
        self.counts.checks += 1
        with Ledger.open(path, read_only=True, anchors=default_anchors(path)) as ledger:
            return sum(
                times
                for scope in ledger.scopes()
                for own in ledger.account(scope, plan.balance).plans
                if own.plan == plan.digest()
                for _, times in own.charged
            )

    def _check_all(self) -> None:
        plan, run = self.world.plan, self.world.run
        assert run is not None
        rounds = plan.federation.rounds
        summary = run.read_summary()
        assert self.world.rounds() == list(range(1, rounds + 1)), "the rounds are not those of the plan, each once"
        assert (summary["stopped"], summary["rounds"]) == (None, rounds), f"the run stopped: {summary['reason']}"
        self.counts.told = dict(Counter(str(fault["reason"]) for fault in summary["faults"]))
        assert not self.counts.told or self.counts.faults.get("disk full"), f"faults for no reason: {self.counts.told}"
        for name in (SERVER, *self.world.sites):
            assert "Traceback" not in self.world.pilot.output(name), f"{name} failed in a way nobody thought of"
        if not plan.is_private:
            self._check_model(run)
            return
        self.counts.budget = plan.privacy.epsilon or 0.0
        rows = {row["id"]: row for row in summary["privacy"]["clients"]}
        for name in self.world.sites:
            path = self.world.pilot.site(name).ledger
            problems = verify(path, anchors=default_anchors(path))
            self.counts.checks += 1
            assert not problems, f"{name}: the ledger is damaged: {problems[0]}"
            charged = self._charged(name)
            self.counts.charged += charged
            assert charged == rounds, f"{name}: {rounds} rounds, {charged} charges"
            row = rows[name]
            assert row["charged_rounds"] == row["rounds"] == rounds, f"{name}: the server's books say otherwise: {row}"
            assert row["statement"] == "verified", f"{name}: its statement is {row['statement']}"
            self.counts.epsilon = max(self.counts.epsilon, row["epsilon"])
        assert self.counts.epsilon <= self.counts.budget * (1 + 1e-9), "more was spent than there was"

    def _check_model(self, run: RunFolder) -> None:
        """The model is the simulation's, bit for bit."""
        simulated = simulation(self.world.plan, self.world.pilot.folder / "simulated")
        ours, theirs = read_parameters(run.model), read_parameters(simulated.model)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in theirs), "the model is not the simulation's"

    def _say(self, text: str) -> None:
        self._tell(f"{time.monotonic() - self._begun:6.1f} s  round {len(self._rounds)}  {text}")


def simulation(plan: Plan, folder: Path) -> RunFolder:
    """The same plan, played by virtual clients."""
    with contextlib.redirect_stdout(None):
        run, _ = start_run(plan, folder, Settings(engine="inline"))
    return run
