"""What the server could have seen: one round of a plan attacked in all ways there are, as figures.

Images are inverted and their labels inferred, texts give their tokens away; each is scored against what the clients
really had, beside what a server would guess that looked at nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from client.datasets.records import Records
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.plan import Plan
from simulations.attacks.reconstruction.inversion import Attack, invert
from simulations.attacks.reconstruction.labels import label_accuracy, labels_seen, likely_labels
from simulations.attacks.reconstruction.line_up import ahead, scores_of
from simulations.attacks.reconstruction.overheard import Round
from simulations.attacks.reconstruction.replay import Replay, replay_of, tensors_of, touched_records
from simulations.attacks.reconstruction.similarity import BEST_PSNR, Images, matched, psnr, recognised, ssim
from simulations.attacks.reconstruction.tokens import (
    TokenScores,
    most_frequent,
    token_scores,
    tokens_in,
    tokens_seen,
)

SCHEMA: Final = "veil-reconstruction-1"
MOST_RECORDS: Final = 256
"""Behind one movement: of more, an inversion takes hours and finds nothing."""

_Score = tuple[float, float, bool]  # PSNR, SSIM, recognised

_BRIGHTEST: Final = {"digits": 16.0}  # others' pixels go to 1


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a round is attacked.

    Attributes:
        attacks: inversions of images.
        inverted: how many clients' updates are inverted at most; labels and line-ups are of all.
        given_labels: whether the attacker is told the classes, as one who knows them anyway; else they are inferred.
    """

    attacks: tuple[Attack, ...] = (Attack(way="zhu", iterations=300), Attack(way="geiping", iterations=400))
    inverted: int = 4
    given_labels: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """How alike images and what was taken for them are; means.

    Attributes:
        way: the attack, or "guess".
        psnr: decibels.
        ssim: from -1 to 1.
        recognised: part of the images that are nearer to their reconstruction than any of `Seen.others` others is.
        by_chance: the same of images of clients who weren't in the round, in place of the true ones: what matching
            the nearest to each other alone makes of a reconstruction.
    """

    way: str
    psnr: float
    ssim: float
    recognised: float
    by_chance: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the server could have seen in one round.

    Attributes:
        plan: digest of the plan that was played.
        trust: the plan's `privacy.trust`.
        epsilon: of the plan; None without privacy.
        movements: that were attacked; labels, line-up and tokens are of all of them.
        inverted: of these, whose images were reconstructed.
        clients, records: behind each of them.
        images: of each attack; none where records aren't images.
        image_guess: the mean of the server's own images of the right class in place of a reconstruction.
        labels: part of the classes that were inferred rightly, whatever their order; None where they weren't.
        label_guess: the same for the classes that are most likely by the server's own records.
        line_up: part of the `others` that explain a movement less than the true records do, a mean; 0.5 is chance, None
            where it wasn't tried.
        tokens: of texts: what the embedding tells; None where records aren't texts.
        token_guess: as many of the tokens that are most frequent in the server's own texts.
        others: records of clients outside the round.
    """

    plan: str
    trust: str
    epsilon: float | None
    movements: int
    inverted: int
    clients: int
    records: int
    images: tuple[ImageScores, ...]
    image_guess: ImageScores | None
    labels: float | None
    label_guess: float | None
    line_up: float | None
    tokens: TokenScores | None
    token_guess: TokenScores | None
    others: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Beside:
    """Originals of one movement, and what each attack took for them, in the same order; from 0 to 1.

    Attributes:
        originals: (n, channels, height, width).
        found: by attack, as many.
    """

    originals: Images
    found: dict[str, Images]


def attack_round(played: Round, options: Options) -> tuple[Seen, tuple[Beside, ...]]:
    """Attack a round that was played.

    Returns:
        The figures; and of images, the originals beside what came of them.

    Raises:
        UsageError: the plan trains in a way that isn't attacked, or its records are neither images nor texts.
    """
    form = card_for(played.plan.data).form
    if form.vocabulary is not None:
        return _of_texts(played), ()
    if len(form.shape) != 3 or played.plan.features is not None:
        raise UsageError(
            "only images and texts are reconstructed; the plan's records are neither as its network sees them"
        )
    return _of_images(played, options)


def as_json(seen: Seen) -> str:
    """For a file or a report."""
    return json.dumps({"schema": SCHEMA, **asdict(seen)}, indent=2) + "\n"


def from_json(text: str) -> Seen:
    """The figures of a file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.pop("schema") != SCHEMA:
            raise ValueError("another schema")
        raw["images"] = tuple(ImageScores(**one) for one in raw["images"])
        for key, kind in (("image_guess", ImageScores), ("tokens", TokenScores), ("token_guess", TokenScores)):
            raw[key] = None if raw[key] is None else kind(**raw[key])
        return Seen(**raw)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no figures of a reconstruction ({SCHEMA})") from error


# --- texts


def _of_texts(played: Round) -> Seen:
    found = guessed = TokenScores(found=0, right=0, there=0)
    records = 0
    for seen in played.overheard:
        own = played.records_behind(seen)
        own = own.take(touched_records(played.plan, len(own), seen.client))
        there = tokens_in(own.x)
        found += token_scores(tokens_seen(played.plan, seen.movement), there)
        guessed += token_scores(most_frequent(played.public.x, len(there)), there)
        records += len(own)
    return Seen(
        **_facts(played, records),
        inverted=0,
        images=(),
        image_guess=None,
        labels=None,
        label_guess=None,
        line_up=None,
        tokens=found,
        token_guess=guessed,
    )


# --- images


def _of_images(played: Round, options: Options) -> tuple[Seen, tuple[Beside, ...]]:
    plan, box = played.plan, box_of(played.plan)
    labels, line_ups, besides, records = list[float](), list[float](), list[Beside](), 0
    pairs: dict[str, list[_Score]] = {one.way: [] for one in options.attacks}
    guesses, label_guesses = list[_Score](), list[float]()
    chances: dict[str, list[bool]] = {one.way: [] for one in options.attacks}
    others = as_images(played.others.x, box)
    for number, seen in enumerate(played.overheard):
        own = played.records_behind(seen)
        clients = 1 if seen.client is not None else len(played.cohort)
        movement = tensors_of(seen.movement)
        replay = replay_of(plan, seen.start, records=len(own), client=seen.client, clients=clients)
        own = own.take(replay.touched)
        records += len(own)
        check_size(len(own))
        inferred = labels_seen(replay, movement, _inventions(own.x.shape, box))
        labels.append(label_accuracy(inferred, own.y))
        label_guesses.append(label_accuracy(likely_labels(played.public.y, len(own)), own.y))
        if len(replay.batches) == 1 and len(played.others):
            line_ups.append(_line_up(played, replay, movement, own))
        if number >= options.inverted:
            continue
        originals, found = as_images(own.x, box), dict[str, Images]()
        given = own.y if options.given_labels else inferred
        for attack in options.attacks:
            inverted = invert(replay, movement, given, shape=tuple(own.x.shape[1:]), box=box, attack=attack)
            images = as_images(inverted.x, box)
            found[attack.way], scores = _scored(originals, images, others)
            pairs[attack.way] += scores
            chances[attack.way] += _by_chance(images, others)
        guesses += _scored(originals, _class_means(played.public, own, box), others, in_order=True)[1]
        besides.append(Beside(originals=originals, found=found))
    figures = Seen(
        **_facts(played, records),
        inverted=len(besides),
        images=tuple(_mean(way, scores, chances[way]) for way, scores in pairs.items()),
        image_guess=_mean("guess", guesses, []),
        labels=float(np.mean(labels)),
        label_guess=float(np.mean(label_guesses)),
        line_up=float(np.mean(line_ups)) if line_ups else None,
        tokens=None,
        token_guess=None,
    )
    return figures, tuple(besides)


def check_size(records: int) -> None:
    """Raises UsageError where inversion would take hours to find nothing."""
    if records > MOST_RECORDS:
        raise UsageError(f"{records} images behind one movement: inversion is tried on {MOST_RECORDS} at most")


def box_of(plan: Plan) -> tuple[float, float]:
    """Least and largest value of a pixel as the network sees it: public, from the data's card."""
    card = card_for(plan.data)
    return (0.0 - card.mean) / card.std, (_BRIGHTEST.get(card.name, 1.0) - card.mean) / card.std


def as_images(x: Tensor, box: tuple[float, float]) -> Images:
    """Records as brightness from 0 to 1."""
    low, high = box
    found: Images = (x.double().numpy() - low) / (high - low)
    return found.clip(0, 1)


def _inventions(shape: Sequence[int], box: tuple[float, float]) -> Tensor:
    low, high = box
    noise = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return low + (high - low) * noise


def _scored(originals: Images, found: Images, others: Images, *, in_order: bool = False) -> tuple[Images, list[_Score]]:
    """What was found in the order of the originals, and PSNR, SSIM and whether each is recognised."""
    if in_order:
        ordered = found
        values = [(min(BEST_PSNR, psnr(a, b)), ssim(a, b)) for a, b in zip(originals, found, strict=True)]
    else:
        pairs = matched(originals, found)
        ordered = found[pairs.order]
        values = list(zip(pairs.psnr.tolist(), pairs.ssim.tolist(), strict=True))
    known = recognised(ordered, originals, others)
    return ordered, [(*value, bool(one)) for value, one in zip(values, known, strict=True)]


def _class_means(public: Records, own: Records, box: tuple[float, float]) -> Images:
    images, mean = as_images(public.x, box), as_images(public.x, box).mean(axis=0)
    labels = public.y.numpy()
    return np.stack(
        [images[labels == label].mean(axis=0) if (labels == label).any() else mean for label in own.y.tolist()]
    )


def _line_up(played: Round, replay: Replay, movement: dict[str, Tensor], own: Records) -> float:
    n = len(own)
    x, y = torch.cat([own.x, played.others.x]).double(), torch.cat([own.y, played.others.y])
    return ahead(scores_of(replay, movement, x, y, records=n), torch.arange(n))


def _by_chance(found: Images, others: Images) -> list[bool]:
    """Whether images that have nothing to do with the round would be recognised too; they are taken out of the others.

    None where there are too few others.
    """
    n = len(found)
    return [score[2] for score in _scored(others[:n], found, others[n:])[1]] if len(others) >= 2 * n else []


def _mean(way: str, scores: Sequence[_Score], chances: Sequence[bool]) -> ImageScores:
    decibels, similarity, known = (float(np.mean(column)) for column in zip(*scores, strict=True))
    by_chance = float(np.mean(chances)) if chances else 0.0
    return ImageScores(way=way, psnr=decibels, ssim=similarity, recognised=known, by_chance=by_chance)


def _facts(played: Round, records: int) -> dict[str, Any]:
    private = played.plan.is_private
    return {
        "plan": played.plan.digest(),
        "trust": played.plan.privacy.trust,
        "epsilon": played.plan.privacy.epsilon if private else None,
        "movements": len(played.overheard),
        "clients": 1 if played.overheard[0].client is not None else len(played.cohort),
        "records": round(records / len(played.overheard)),
        "others": len(played.others),
    }
