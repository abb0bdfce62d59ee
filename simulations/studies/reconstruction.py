"""What a curious server could have seen, protection by protection: images, labels and words taken from real updates.

    python -m simulations.studies.reconstruction --out docs/evidence/reconstruction.txt

Each cell plays one round of a plan with a few records a client and attacks what the server got
(`simulations.attacks.reconstruction`). Under every protection the attacker is helped: it is told how many records there
are, and, of protected rounds, their labels. Finished cells are kept and not played again.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Final

import numpy as np

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_file import plan_from, write_plan
from shared_models.resolve import resolve
from simulations.attacks.reconstruction.figures import Seen, as_json, from_json
from simulations.attacks.reconstruction.inversion import Attack
from simulations.attacks.reconstruction.overheard import play_round
from simulations.attacks.reconstruction.picture import Strip, draw
from simulations.attacks.reconstruction.seen import Options, attack_round
from simulations.kept import keep, read_kept
from simulations.scenarios import find_plan

NONE: Final = "no protection"
IN_SUM: Final = 20
SHOWN: Final = 4  # images of a strip
FASHION: Final = Path("build/studies/reconstruction/fashion.npz")
_FASHION_IMAGES: Final = 500  # as many clients: sixty thousand would only take longer

_NOISE: Final = ("privacy.unit=example", "privacy.delta=1e-5", "training.sample_rate=1.0")
_ALONE: Final = "federation.cohort={sampling='fixed',size=16}"
_SUM: Final = (
    "privacy.trust=distributed",
    "secure_sum.honest=1.0",
    "secure_sum.corrupt=0.0",
    f"federation.cohort={{sampling='fixed',size={IN_SUM}}}",
)
PROTECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    NONE: (_ALONE,),
    "local DP, epsilon 1000": (*_NOISE, _ALONE, "privacy.trust=local", "privacy.epsilon=1000"),
    "local DP, epsilon 8": (*_NOISE, _ALONE, "privacy.trust=local", "privacy.epsilon=8"),
    "local DP, epsilon 1": (*_NOISE, _ALONE, "privacy.trust=local", "privacy.epsilon=1"),
    "secure sum, epsilon 1000": (*_NOISE, *_SUM, "privacy.epsilon=1000"),
    "secure sum, epsilon 8": (*_NOISE, *_SUM, "privacy.epsilon=8"),
}
"""Each as overrides of a plan without; `federation.cohort` says how many updates, or how many clients in the sum."""

_MLP: Final = ("model.name=mlp", "model.options={hidden=[32],activation='tanh'}")
_DIGITS: Final = ("data.name=digits", "data.test_fraction=0.75", *_MLP)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of data and network.

    Attributes:
        name: in the table.
        overrides: of the plan.
        protections: that are tried.
        drawn: whether it is in the picture.
        iterations: of either attack.
        inverted: updates that are inverted.
    """

    name: str
    overrides: tuple[str, ...]
    protections: tuple[str, ...] = tuple(PROTECTIONS)
    drawn: bool = False
    iterations: tuple[int, int] = (100, 250)
    inverted: int = 4


def _shares(clients: int, each: int) -> tuple[str, ...]:
    return (f"data.partition={{kind='iid',clients={clients}}}", f"training.expected_batch_size={each}")


_SOME: Final = (NONE, "local DP, epsilon 1000", "local DP, epsilon 8", "secure sum, epsilon 8")

CASES: Final[tuple[Case, ...]] = (
    Case(name="digits, mlp, 1 image", overrides=(*_DIGITS, *_shares(449, 1)), drawn=True),
    Case(name="digits, mlp, 4 images", overrides=(*_DIGITS, *_shares(112, 4)), protections=_SOME, inverted=2),
    Case(
        name="digits, mlp, 4 images, 4 steps",
        overrides=(*_DIGITS, *_shares(112, 2), "training.steps=4"),
        protections=(NONE,),
    ),
    Case(
        name="digits, cnn, 4 images",
        overrides=(*_DIGITS, "model.name=cnn", "model.options={activation='tanh'}", *_shares(112, 4)),
        protections=(NONE,),
        inverted=2,
    ),
    Case(
        name="fashion, cnn, 1 image",
        overrides=(
            "data.name=npz",
            f"data.path={FASHION}",
            "data.test_fraction=0.5",
            f"data.card.classes=[{','.join(repr(str(i)) for i in range(10))}]",
            "data.card.input_shape=[1, 28, 28]",
            "data.card.mean=0.5",
            "data.card.std=0.5",
            "model.name=cnn",
            "model.options={activation='tanh'}",
            *_shares(225, 1),
        ),
        protections=_SOME,
        drawn=True,
        iterations=(100, 300),
    ),
    Case(
        name="sentences, recurrent, 4 texts",
        overrides=(
            "data.name=sentences",
            "data.text={tokens='words',vocabulary=4000,places=32}",
            "data.test_fraction=0.75",
            "model.name=recurrent",
            "model.options={hidden=32,embedding=16}",
            *_shares(187, 4),
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One round of the study.

    Attributes:
        case, protection: names.
        plan: resolved.
        options: of the attacks.
    """

    case: Case
    protection: str
    plan: Plan
    options: Options

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells it from other cells, and from what it was before it was changed."""
        return self.case.name, self.protection, self.plan.digest(), repr(self.options)


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of a cell, as it is kept.

    Attributes:
        case, protection, plan, options: its key.
        seen: the figures, as JSON.
        originals, found: of the first few images, whole numbers to 255; `found` by attack.
    """

    case: str
    protection: str
    plan: str
    options: str
    seen: str
    originals: list[list[list[int]]]
    found: dict[str, list[list[list[int]]]]

    @property
    def figures(self) -> Seen:
        """What was found."""
        return from_json(self.seen)


def cells(cases: Sequence[Case] = CASES, seed: int = 7) -> list[Cell]:
    """The study's rounds.

    Raises:
        UsageError: a plan can't be resolved.
    """
    return [
        Cell(
            case=case,
            protection=protection,
            plan=_plan(case, protection, seed),
            options=Options(
                attacks=(
                    Attack(way="zhu", iterations=case.iterations[0]),
                    Attack(way="geiping", iterations=case.iterations[1]),
                ),
                inverted=case.inverted,
                given_labels=protection != NONE,
            ),
        )
        for case in cases
        for protection in case.protections
    ]


def small_fashion(path: Path) -> None:
    """The first few images of Fashion-MNIST as a file, if the set is here.

    Raises:
        UsageError: it isn't.
    """
    from client.datasets.registry import load
    from shared_models.cards import card_for
    from shared_models.plan_data import DataPlan

    data = DataPlan.model_validate({"name": "fashion-mnist"})
    records, card = load(data, split_key=bytes(32)).train.part(slice(_FASHION_IMAGES)), card_for(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=np.rint(255 * (records.x.numpy() * card.std + card.mean)).astype(np.uint8), y=records.y.numpy())


def _plan(case: Case, protection: str, seed: int) -> Plan:
    common = ("training.steps=1", "training.momentum=0.0", "federation.rounds=1", "data.partition={kind='iid'}")
    return resolve(find_plan("digits-plain", (*common, f"seed={seed}", *case.overrides, *PROTECTIONS[protection])))


def play(
    wanted: Sequence[Cell], folder: Path, *, processes: int = 1, say: Callable[[str], None] = lambda _: None
) -> list[Result]:
    """Play and attack what isn't kept yet; results in the order of the cells, without those whose data isn't here."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "results.jsonl"
    known = {(one.case, one.protection, one.plan, one.options): one for one in read_kept(kept, Result)}
    missing = [cell for cell in wanted if cell.key not in known]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(_run, cell.case, cell.protection, write_plan(cell.plan), cell.options) for cell in missing]
        for number, (cell, job) in enumerate(zip(missing, jobs, strict=True), 1):
            try:
                known[cell.key] = job.result()
            except UsageError as error:  # of texts that can't be fetched here
                say(f"{number}/{len(missing)}  {cell.case.name}, {cell.protection}: left out: {error}")
                continue
            keep(kept, known[cell.key])
            say(f"{number}/{len(missing)}  {cell.case.name}, {cell.protection}")
    return [known[cell.key] for cell in wanted if cell.key in known]


def _run(case: Case, protection: str, text: str, options: Options) -> Result:
    import tomllib

    import torch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    plan = resolve(plan_from(tomllib.loads(text), where=case.name))
    seen, besides = attack_round(play_round(plan), options)
    originals = [image for one in besides for image in one.originals][:SHOWN]
    found = {
        a.way: [image for one in besides for image in one.found[a.way]][:SHOWN] for a in options.attacks if besides
    }
    return Result(
        case=case.name,
        protection=protection,
        plan=plan.digest(),
        options=repr(options),
        seen=as_json(seen),
        originals=[_whole(image) for image in originals],
        found={way: [_whole(image) for image in images] for way, images in found.items()},
    )


def _whole(image: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> list[list[int]]:
    return [[int(value) for value in row] for row in np.rint(255 * image[0])]


# --- table and picture


def report(results: Sequence[Result]) -> str:
    """The study as text."""
    lines = []
    for case in dict.fromkeys(one.case for one in results):
        rows = [one for one in results if one.case == case]
        lines += _of_texts(rows) if rows[0].figures.tokens is not None else _of_images(rows)
        lines.append("")
    return "\n".join(lines)


def _of_images(rows: Sequence[Result]) -> list[str]:
    heads = "".join(f"{f'{way}: PSNR':>15s}{'SSIM':>7s}{'known':>7s}{'luck':>6s}" for way in ("Zhu", "Geiping"))
    lines = [f"{rows[0].case:34s}{'images':>7s}{heads}{'labels':>9s}{'guess':>7s}{'line-up':>9s}"]
    for row in rows:
        seen = row.figures
        scores = "".join(
            f"{one.psnr:15.1f}{one.ssim:7.2f}{_part(one.recognised):>7s}{_part(one.by_chance):>6s}"
            for one in seen.images
        )
        line_up = "-" if seen.line_up is None else f"{seen.line_up:.2f}"
        labels = "".join(f"{_part(part):>{wide}s}" for part, wide in ((seen.labels, 9), (seen.label_guess, 7)))
        lines.append(f"{row.protection:34s}{seen.records:7d}{scores}{labels}{line_up:>9s}")
    guess = rows[0].figures.image_guess
    if guess is not None:
        known = _part(guess.recognised)
        lines.append(f"{'a guess: the mean of the class':41s}{guess.psnr:15.1f}{guess.ssim:7.2f}{known:>7s}")
    return lines


def _of_texts(rows: Sequence[Result]) -> list[str]:
    heads = f"{'words there':>13s}{'named':>7s}{'precision':>11s}{'recall':>8s}{'guess':>7s}"
    lines = [f"{rows[0].case:34s}{'texts':>7s}{heads}"]
    for row in rows:
        seen = row.figures
        assert seen.tokens is not None
        assert seen.token_guess is not None
        parts = (seen.tokens.precision, seen.tokens.recall, seen.token_guess.recall)
        shares = "".join(f"{_part(part):>{wide}s}" for part, wide in zip(parts, (11, 8, 7), strict=True))
        lines.append(f"{row.protection:34s}{seen.records:7d}{seen.tokens.there:13d}{seen.tokens.found:7d}{shares}")
    return lines


def _part(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def picture(results: Sequence[Result], cases: Sequence[Case] = CASES) -> str:
    """Originals and reconstructions, by the attack that is nearer: as SVG."""
    drawn = [case.name for case in cases if case.drawn and any(one.case == case.name for one in results)]
    by = {(one.protection, one.case): one for one in results}
    rows = [
        (name, [_strip(by[name, case]) if (name, case) in by else None for case in drawn])
        for name in PROTECTIONS
        if any((name, case) in by for case in drawn)
    ]
    return draw(drawn, rows, title="Originals and what a curious server reconstructs of them, by protection")


def _strip(result: Result) -> Strip:
    best = max(result.figures.images, key=lambda one: one.psnr)
    return Strip(
        originals=[np.array(image) / 255 for image in result.originals],
        found=[np.array(image) / 255 for image in result.found[best.way]],
        said=f"{best.way.capitalize()}: PSNR {best.psnr:.1f} dB, SSIM {best.ssim:.2f}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Play the study, write its table, and the picture beside it."""
    parser = argparse.ArgumentParser(prog="python -m simulations.studies.reconstruction", description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("build/studies/reconstruction"))
    parser.add_argument("--out", type=Path, help="of the table; the picture has the same name and ends in .svg")
    given = parser.parse_args(arguments)
    wanted = CASES
    try:
        small_fashion(FASHION)
    except UsageError as error:
        print(f"left out: {error}")
        wanted = tuple(case for case in CASES if str(FASHION) not in " ".join(case.overrides))
    results = play(cells(wanted, seed=given.seed), given.folder, processes=given.processes, say=print)
    text = report(results)
    print(text)
    if given.out is not None:
        given.out.write_text(text)
        given.out.with_suffix(".svg").write_text(picture(results))


if __name__ == "__main__":
    main()
