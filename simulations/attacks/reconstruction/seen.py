"""What the server could have seen: one round of a plan attacked in all ways there are, as figures.

Images are inverted and their labels inferred, texts give their tokens away; each is scored against what the clients
really had, beside what a server would guess that looked at nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from client.datasets.records import Records
from security.errors import UsageError
from shared_models.cards import card_for
from shared_models.plan import Plan
from simulations.attacks.reconstruction.figures import ImageScores, Seen
from simulations.attacks.reconstruction.inversion import Attack, invert
from simulations.attacks.reconstruction.labels import label_accuracy, labels_seen, last_bias, likely_labels
from simulations.attacks.reconstruction.line_up import ahead, scores_of
from simulations.attacks.reconstruction.overheard import Overheard, Round
from simulations.attacks.reconstruction.replay import (
    Replay,
    Values,
    check_replayable,
    check_rows_tell,
    replay_of,
    tensors_of,
    touched_records,
)
from simulations.attacks.reconstruction.similarity import BEST_PSNR, Images, matched, psnr, recognised, ssim
from simulations.attacks.reconstruction.tokens import (
    TokenScores,
    embedding_of,
    most_frequent,
    token_scores,
    tokens_in,
    tokens_seen,
)

MOST_RECORDS: Final = 256
"""Behind one movement: of more, an inversion takes hours and finds nothing."""
MOST_VALUES: Final = 2**27
"""In the gradients of single records that an inversion of clipped training holds at once, a few times over."""

_Score = tuple[float, float, bool]  # PSNR, SSIM, recognised

_BRIGHTEST: Final = {"digits": 16.0}  # others' pixels go to 1


def _silent(text: str) -> None:
    del text


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a round is attacked.

    Attributes:
        attacks: inversions of images.
        inverted: how many clients' updates are inverted at most; labels and line-ups are of all.
        given_labels: whether the attacker is told the classes, as one who knows them anyway; else they are inferred.
        say: is told what is being done.
    """

    attacks: tuple[Attack, ...] = (Attack(way="zhu", iterations=300), Attack(way="geiping", iterations=400))
    inverted: int = 4
    given_labels: bool = False
    say: Callable[[str], None] = field(default=_silent, repr=False)


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
    check_attackable(played.plan)
    if is_of_texts(played.plan):
        return _of_texts(played), ()
    return _of_images(played, options)


def check_attackable(plan: Plan) -> None:
    """Refuse a plan that can't be attacked, before its round is played.

    Raises:
        UsageError: it trains in a way that isn't attacked, or its records are neither images nor texts.
    """
    if plan.federation.asynchronous is not None:
        raise UsageError("[federation.asynchronous]: plans with it can't be attacked; attack one without")
    for key, there in (("statistics", plan.statistics), ("personal", plan.personal)):
        if there is not None:
            raise UsageError(f"[{key}]: plans with it can't be attacked; attack one without")
    if is_of_texts(plan):
        embedding_of(plan)
        check_rows_tell(plan)
        return
    if len(card_for(plan.data).form.shape) != 3 or plan.features is not None:
        raise UsageError(
            "only images and texts are reconstructed; the plan's records are neither as its network sees them"
        )
    check_replayable(plan)


def is_of_texts(plan: Plan) -> bool:
    """Whether its records are tokens: then words are looked for, not images."""
    return card_for(plan.data).form.vocabulary is not None


# --- texts


def _of_texts(played: Round) -> Seen:
    found = guessed = TokenScores(found=0, right=0, there=0)
    records = list[int]()
    guessing = len(played.public) > 0
    for seen in played.overheard:
        own = played.records_behind(seen)
        own = own.take(touched_records(played.plan, len(own), seen.client))
        there = tokens_in(own.x)
        found += token_scores(tokens_seen(played.plan, seen.start, seen.movement), there)
        if guessing:
            guessed += token_scores(most_frequent(played.public.x, len(there)), there)
        records.append(len(own))
    return Seen(
        **_facts(played, records),
        inverted=0,
        images=(),
        image_guess=None,
        labels=None,
        label_guess=None,
        line_up=None,
        tokens=found,
        token_guess=guessed if guessing else None,
        left_out=() if guessing else ("guess-nothing",),
    )


# --- images


@dataclass
class _Notes:
    """What came of the movements so far."""

    records: list[int] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    label_guesses: list[float] = field(default_factory=list)
    line_ups: list[float] = field(default_factory=list)
    besides: list[Beside] = field(default_factory=list)
    scores: dict[str, list[_Score]] = field(default_factory=dict)
    chances: dict[str, list[bool]] = field(default_factory=dict)
    guesses: list[_Score] = field(default_factory=list)
    left_out: set[str] = field(default_factory=set)


def _of_images(played: Round, options: Options) -> tuple[Seen, tuple[Beside, ...]]:
    notes, others = _Notes(), len(played.others)
    for number, seen in enumerate(played.overheard, 1):
        options.say(f"movement {number} of {len(played.overheard)}")
        _look(played, seen, options, notes)
    if not notes.records:
        raise UsageError("no client of the round has a record: there is nothing to be seen")
    if not options.inverted:
        notes.left_out.add("images-unasked")
    if not len(played.public):
        notes.left_out.add("guess-nothing")
    told = options.given_labels or "labels-bias" in notes.left_out
    figures = Seen(
        **_facts(played, notes.records),
        inverted=len(notes.besides),
        images=tuple(_mean(way, scores, notes.chances[way], others) for way, scores in notes.scores.items()),
        image_guess=_mean("guess", notes.guesses, [], others) if notes.guesses else None,
        labels=_mean_or_none(notes.labels),
        label_guess=_mean_or_none(notes.label_guesses),
        line_up=_mean_or_none(notes.line_ups),
        tokens=None,
        token_guess=None,
        labels_given=told and bool(notes.besides),
        left_out=tuple(sorted(notes.left_out)),
    )
    return figures, tuple(notes.besides)


def _look(played: Round, seen: Overheard, options: Options, notes: _Notes) -> None:
    """Attack one movement."""
    own, movement = played.records_behind(seen), tensors_of(seen.movement)
    if not len(own):
        return  # of a client without records there is nothing to be seen
    clients = 1 if seen.client is not None else len(played.cohort)
    replay = replay_of(played.plan, seen.start, records=len(own), client=seen.client, clients=clients)
    own = own.take(replay.touched)
    notes.records.append(len(own))
    given = own.y
    if last_bias(replay) is None:
        notes.left_out.add("labels-bias")
    else:
        inferred = labels_seen(replay, movement, _inventions(own.x.shape, box_of(played.plan)))
        notes.labels.append(label_accuracy(inferred, own.y))
        given = own.y if options.given_labels else inferred
        if len(played.public):
            notes.label_guesses.append(label_accuracy(likely_labels(played.public.y, len(own)), own.y))
    if len(replay.batches) != 1:
        notes.left_out.add("line-up-steps")
    elif not len(played.others):
        notes.left_out.add("line-up-nobody")
    else:
        notes.line_ups.append(_line_up(played, replay, movement, own))
    if len(notes.besides) < options.inverted:
        if is_too_large(replay, len(own)):
            notes.left_out.add("images-many")
        else:
            _reconstruct(played, replay, movement, own, given, options, notes)


def _reconstruct(
    played: Round, replay: Replay, movement: Values, own: Records, given: Tensor, options: Options, notes: _Notes
) -> None:
    """Invert one movement in all ways."""
    box = box_of(played.plan)
    originals, others, found = as_images(own.x, box), as_images(played.others.x, box), dict[str, Images]()
    for attack in options.attacks:
        options.say(f"  reconstructing {len(own)} images ({attack.way}, {attack.iterations} iterations)")
        inverted = invert(replay, movement, given, shape=tuple(own.x.shape[1:]), box=box, attack=attack)
        images = as_images(inverted.x, box)
        found[attack.way], scores = _scored(originals, images, others)
        notes.scores.setdefault(attack.way, []).extend(scores)
        notes.chances.setdefault(attack.way, []).extend(_by_chance(images, others))
    if len(played.public):
        notes.guesses += _scored(originals, _class_means(played.public, own, box), others, in_order=True)[1]
    notes.besides.append(Beside(originals=originals, found=found))


def is_too_large(replay: Replay, records: int) -> bool:
    """Whether an inversion would take hours, or more memory than there is, to find nothing."""
    values = sum(value.numel() for value in replay.start.values())
    return records > MOST_RECORDS or (replay.clips and records > 1 and records * values > MOST_VALUES)


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


def _mean(way: str, scores: Sequence[_Score], chances: Sequence[bool], others: int) -> ImageScores:
    decibels, similarity, known = (float(np.mean(column)) for column in zip(*scores, strict=True))
    return ImageScores(
        way=way,
        psnr=decibels,
        ssim=similarity,
        recognised=known if others else None,
        by_chance=float(np.mean(chances)) if chances else None,
    )


def _mean_or_none(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _facts(played: Round, records: Sequence[int]) -> dict[str, Any]:
    private = played.plan.is_private
    return {
        "plan": played.plan.digest(),
        "trust": played.plan.privacy.trust,
        "epsilon": played.plan.privacy.epsilon if private else None,
        "movements": len(records),
        "clients": 1 if played.overheard[0].client is not None else len(played.cohort),
        "records": round(sum(records) / len(records)),
        "others": len(played.others),
    }
