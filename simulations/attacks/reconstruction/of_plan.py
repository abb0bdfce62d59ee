"""A plan or a run attacked as a user asks for it: its first round, figures in a file, and a picture only if asked for.

The picture shows training records. So nobody gets it who didn't ask for it: it is a file of its own, for its owner
alone, and no report holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from security.errors import UsageError
from server.run_folder import RunFolder, writable, write_atomically
from shared_models import own
from shared_models.plan import ConstantSchedule, Plan
from shared_models.resolve import resolve
from shared_models.schedule import learning_rate
from simulations.attacks.reconstruction.figures import Seen, as_json
from simulations.attacks.reconstruction.inversion import Attack
from simulations.attacks.reconstruction.overheard import play_round
from simulations.attacks.reconstruction.picture import Strip, draw
from simulations.attacks.reconstruction.seen import Beside, Options, attack_round, check_attackable, is_of_texts
from simulations.run import new_folder
from simulations.scenarios import find_plan

SHOWN: Final = 8  # images of a picture


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is attacked, and where the figures go.

    Attributes:
        plan: resolved.
        folder: that gets the files.
        drawn: whether a picture is made too.
        models: networks of the user's own, by name.
    """

    plan: Plan
    folder: RunFolder
    drawn: bool
    models: Mapping[str, str]


def find_target(
    what: str,
    overrides: Sequence[str],
    *,
    out: Path | None,
    force: bool,
    drawn: bool,
    models: Mapping[str, str],
) -> Target:
    """What to attack, with all that can be refused refused before anything is played.

    Args:
        what: name of a scenario, plan file, or folder of a run.
        overrides: `KEY=VALUE` texts, for plans alone.
        out: folder for the files, for plans alone; None for a new one.
        force: whether files that are there may be written over.
        drawn: whether a picture is made too.
        models: networks of the user's own, by name.

    Raises:
        UsageError: there is no such plan or run, it can't be attacked, or its files may not be written.
    """
    own.bind(models)
    run = RunFolder(Path(what)) if (Path(what) / "plan.toml").is_file() else None
    if run is not None and overrides:
        raise UsageError("--set: a run has the plan that it was played with; leave it out, or attack a plan")
    if run is not None and out is not None:
        raise UsageError(f"--out: an attack on a run is kept in the run's folder; leave it out, or attack {run.plan}")
    if out is not None and (out / "plan.toml").is_file():
        raise UsageError(f"--out: {out} holds a run, whose report would take this for its own; choose another folder")
    plan = resolve(find_plan(what, overrides) if run is None else run.read_plan())
    check_attackable(plan)
    if drawn and is_of_texts(plan):
        raise UsageError("--picture: there is none of texts; leave it out")
    folder = run or RunFolder(out or new_folder(f"{plan.name}-attack"))
    if not force:
        for path in (folder.reconstruction, folder.reconstruction_picture):
            if path.exists():
                raise UsageError(f"{path}: is there already; --force replaces figures and picture of an earlier attack")
    return Target(plan=plan, folder=folder, drawn=drawn, models=models)


def attack(
    target: Target, *, inverted: int, iterations: int, say: Callable[[str], None]
) -> tuple[Seen, tuple[Beside, ...]]:
    """Play the first round of the plan, and attack it.

    As in the study, the attacker is told the classes of the images where the plan is private.

    Args:
        target: what is attacked.
        inverted: movements whose images are reconstructed at most.
        iterations: of each attack.
        say: is told what is being done.

    Raises:
        UsageError: the plan can't be played, or the folder not be written.
        RunError: the round failed.
    """
    plan = target.plan
    say(f"playing the first of {plan.federation.rounds} rounds" if plan.federation.rounds > 1 else "playing the round")
    options = Options(
        attacks=(Attack(way="zhu", iterations=iterations), Attack(way="geiping", iterations=iterations)),
        inverted=inverted,
        given_labels=plan.is_private,
        say=say,
    )
    with writable(target.folder.path):
        seen, besides = attack_round(play_round(first_round(plan), target.models), options)
    return replace(seen, plan=plan.digest(), epsilon=plan.privacy.epsilon if plan.is_private else None), besides


def first_round(plan: Plan) -> Plan:
    """A plan of the first round alone, with the noise, the learning rate and the clients that it has in the whole run.

    Epsilon and budget of the run are left out: of one round they would stand for other noise. So is what a round does
    beside training.
    """
    training = plan.training.model_copy(
        update={"learning_rate": learning_rate(plan, 1), "schedule": ConstantSchedule()}
    )
    federation = plan.federation.model_copy(update={"rounds": 1, "model_average": None})
    evaluation = plan.evaluation.model_copy(update={"baselines": False, "target": None, "patience": None})
    changes: dict[str, Any] = {"training": training, "federation": federation, "evaluation": evaluation}
    if plan.is_private:
        alone: dict[str, Any] = {"epsilon": None, "calibrated_from": None, "budget": None, "client_budgets": {}}
        changes["privacy"] = plan.privacy.model_copy(update=alone)
    return resolve(Plan.model_validate(plan.model_copy(update=changes).model_dump()))


def keep(target: Target, seen: Seen, besides: Sequence[Beside]) -> tuple[Path, ...]:
    """Write the figures, and the picture if there is to be one; a picture of other figures is removed.

    Returns:
        What was written: the figures first.

    Raises:
        UsageError, RunError: it can't be written.
    """
    folder = target.folder
    with writable(folder.path):
        folder.reconstruction_picture.unlink(missing_ok=True)
    write_atomically(folder.reconstruction, as_json(seen).encode())
    written = [folder.reconstruction]
    if target.drawn and besides:
        write_atomically(folder.reconstruction_picture, picture_of(seen, besides).encode(), mode=0o600)
        written.append(folder.reconstruction_picture)
    return tuple(written)


def picture_of(seen: Seen, besides: Sequence[Beside]) -> str:
    """The first few originals, and under them what each attack took for them, in grey: as SVG."""
    originals = [image.mean(axis=0) for one in besides for image in one.originals][:SHOWN]
    rows = []
    for scores in seen.images:
        found = [image.mean(axis=0) for one in besides for image in one.found[scores.way]][:SHOWN]
        said = f"PSNR {scores.psnr:.1f} dB, SSIM {scores.ssim:.2f}"
        rows.append((scores.way.capitalize(), [Strip(originals=originals, found=found, said=said)]))
    count = sum(len(one.originals) for one in besides)
    return draw(
        [f"{len(originals)} of {count} images"], rows, title="Originals and what a curious server makes of them"
    )
