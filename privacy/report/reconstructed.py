"""What a curious server could have seen of one round, as a run's report tells it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

from privacy.report.facts import Reconstruction, TokenScores
from privacy.report.plain import from_plain, parsed, to_plain

SCHEMA = "veil-reconstruction-1"

_MOST_DECIBELS = 1000

Measure = Literal["psnr", "ssim", "recognised", "right", "ahead", "recall", "precision"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure beside that of a guess.

    Attributes:
        way: of looking: an attack on images, "labels", "line-up" or "words".
        measure: what the figure is; "psnr" in decibels, "ssim" and "ahead" plain, others parts of a whole.
        found: the figure.
        guess: the same of a server that looked at nothing; None where there is no such thing.
    """

    way: str
    measure: Measure
    found: float | None
    guess: float | None

    @property
    def is_part(self) -> bool:
        """Whether it is a part of a whole, from 0 to 1."""
        return self.measure not in ("psnr", "ssim", "ahead")


def reconstruction_of(text: str, plan: str, *, picture: str | None = None) -> Reconstruction:
    """The figures of a reconstruction.json.

    Args:
        text: its content.
        plan: digest of the run's plan.
        picture: file name of the picture beside it, where the report is to name it.

    Raises:
        ValueError: it is of another plan, or holds no such figures; the message goes on from the file's name.
    """
    raw = parsed(text)
    if raw.get("schema") != SCHEMA:
        raise ValueError(f"holds no figures that this version reads ({SCHEMA})")
    if raw.get("plan") != plan:
        raise ValueError("is of another plan than this run's")
    names = {field.name for field in fields(Reconstruction)} - {"picture"}
    try:
        found = from_plain(Reconstruction, {**{name: raw[name] for name in names}, "picture": picture})
        to_plain(found)  # refuses what is no finite number
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise ValueError("is damaged") from error
    if not (_are_parts(found) and _are_counts(found)):
        raise ValueError("is damaged")
    return found


def scores(of: Reconstruction) -> Iterator[Score]:
    """The figures in the order they are told."""
    guess = of.image_guess
    for one in of.images:
        yield Score(way=one.way, measure="psnr", found=one.psnr, guess=guess.psnr if guess else None)
        yield Score(way=one.way, measure="ssim", found=one.ssim, guess=guess.ssim if guess else None)
        if one.recognised is not None:
            yield Score(way=one.way, measure="recognised", found=one.recognised, guess=one.by_chance)
    if of.labels is not None:
        yield Score(way="labels", measure="right", found=of.labels, guess=of.label_guess)
    if of.line_up is not None:
        yield Score(way="line-up", measure="ahead", found=of.line_up, guess=0.5)
    if of.tokens is not None:
        words, blind = of.tokens, of.token_guess
        yield Score(way="words", measure="recall", found=_recall(words), guess=_recall(blind) if blind else None)
        yield Score(
            way="words", measure="precision", found=_precision(words), guess=_precision(blind) if blind else None
        )


def _recall(words: TokenScores) -> float | None:
    return words.right / words.there if words.there else None


def _precision(words: TokenScores) -> float | None:
    return words.right / words.found if words.found else None


def _are_parts(found: Reconstruction) -> bool:
    images = [*found.images, *([found.image_guess] if found.image_guess else [])]
    parts = [found.labels, found.label_guess, found.line_up]
    parts += [part for one in images for part in (one.recognised, one.by_chance)]
    alike = all(abs(one.psnr) <= _MOST_DECIBELS and abs(one.ssim) <= 1 for one in images)
    return alike and all(0 <= part <= 1 for part in parts if part is not None)


def _are_counts(found: Reconstruction) -> bool:
    words = [one for one in (found.tokens, found.token_guess) if one is not None]
    counts = [found.movements, found.inverted, found.clients, found.records, found.others]
    counts += [count for one in words for count in (one.found, one.right, one.there)]
    return min(counts) >= 0 and all(one.right <= min(one.found, one.there) for one in words)
