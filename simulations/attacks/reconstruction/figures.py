"""What the server could have seen, as figures: in memory, and in reconstruction.json."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from privacy.report.reconstructed import SCHEMA
from simulations.attacks.reconstruction.tokens import TokenScores


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """How alike images and what was taken for them are; means.

    Attributes:
        way: the attack, or "guess".
        psnr: decibels.
        ssim: from -1 to 1.
        recognised: part of the images that are nearer to their reconstruction than any of `Seen.others` others is; None
            where there are no others.
        by_chance: the same of images of clients who weren't in the round, in place of the true ones: what matching
            the nearest to each other alone makes of a reconstruction; None where there are too few.
    """

    way: str
    psnr: float
    ssim: float
    recognised: float | None
    by_chance: float | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the server could have seen in one round.

    Attributes:
        plan: digest of the plan that was attacked.
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
        labels_given: whether the images were reconstructed with their true classes, which the attacker was told.
        left_out: codes of what wasn't tried, and why; in words in `privacy/report/lang/`.
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
    labels_given: bool = False
    left_out: tuple[str, ...] = ()


def as_json(seen: Seen) -> str:
    """For a file or a report."""
    return json.dumps({"schema": SCHEMA, **asdict(seen)}, indent=2, allow_nan=False) + "\n"


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
        raw["left_out"] = tuple(raw.get("left_out", ()))
        return Seen(**raw)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"no figures of a reconstruction ({SCHEMA})") from error
