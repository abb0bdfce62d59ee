"""An explanation as a picture, by matplotlib: PNG or SVG.

What speaks for the class is blue, what speaks against it rust, and the deeper the more. Texts are drawn as they are:
nothing in a name or a token is taken for a formula.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from security.errors import UsageError
from server.explain.explain import CAVEAT, Explanation, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, FOR, AGAINST = "#1d2126", "#5a626c", "#1c5a8c", "#9a3412"
_WIDTH: Final = 8.0  # inches
_MOST_BARS: Final = 24
_MOST_TOKENS: Final = 400
_LINE: Final = 84  # characters of a text's line
_NAMES: Final = 40  # characters of a bar's name
_SCALE_NAME: Final = "log-odds"


def shown(text: str) -> str:
    """A text that can be printed and drawn: what can't is a dot, an end of line its sign."""
    return "".join("¶" if one == "\n" else one if one.isprintable() else "·" for one in text)


def draw(explanation: Explanation, format_: Literal["png", "svg"]) -> bytes:
    """The picture.

    Raises:
        UsageError: matplotlib isn't installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--out: pictures need matplotlib; pip install 'veil-fl[explain]'") from error
    drawn = {"text": _text, "image": _image, "signal": _signal}.get(explanation.form, _bars)
    style: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": "veil",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
    }
    with rc_context(style), warnings.catch_warnings(), io.BytesIO() as file:
        warnings.simplefilter("ignore")  # characters that no font has here
        figure = Figure(figsize=(_WIDTH, 4), layout="constrained")
        drawn(figure, explanation)
        figure.suptitle(_title(explanation), x=0.01, ha="left", fontsize=10, parse_math=False)
        figure.supxlabel(_foot(explanation), x=0.01, ha="left", fontsize=7, color=MUTED, parse_math=False)
        # Without a date, the same explanation is the same file.
        figure.savefig(file, format=format_, dpi=150, metadata={"Date": None} if format_ == "svg" else {})
        return file.getvalue()


def _title(explanation: Explanation) -> str:
    found = explanation.attribution
    return (
        f"{shown(explanation.target)}: probability {found.probability:.3g} (log-odds {found.score:+.2f}); of the "
        f"baseline {found.base_probability:.3g} ({found.base_score:+.2f})"
    )


def _foot(explanation: Explanation) -> str:
    found = explanation.attribution
    sums = f"gap {found.gap:.1%} of the attributions' weight" + (
        "" if found.adds_up else ": TOO LARGE, give more steps"
    )
    how = f"Integrated gradients, {found.steps} steps, {sums}. Baseline: {explanation.baseline}. {CAVEAT}"
    return "\n".join(textwrap.wrap(how, 150))


def _bars(figure: Figure, explanation: Explanation) -> None:
    parts = sorted(explanation.parts, key=lambda part: -abs(part.score))
    rest = parts[_MOST_BARS:]
    if rest:
        total = sum(part.score for part in rest)
        parts = [*parts[:_MOST_BARS], Part(name=f"{len(rest)} others", value="", score=total)]
    figure.set_size_inches(_WIDTH, 1.5 + 0.24 * len(parts))
    axes = figure.add_subplot()
    places = np.arange(len(parts))[::-1]
    scores = [part.score for part in parts]
    axes.barh(places, scores, color=[FOR if score > 0 else AGAINST for score in scores], height=0.7)
    names = [
        textwrap.shorten(shown(f"{part.name} = {part.value}" if part.value else part.name), _NAMES, placeholder="...")
        for part in parts
    ]
    axes.set_yticks(places, labels=names, parse_math=False)
    axes.axvline(0, color=INK, linewidth=0.8)
    largest = max(map(abs, scores), default=0) or 1.0
    for place, score in zip(places, scores, strict=True):
        side = 1 if score >= 0 else -1
        looks: dict[str, Any] = {"fontsize": 8, "color": MUTED, "ha": "left" if side > 0 else "right", "va": "center"}
        axes.text(score + side * 0.02 * largest, place, f"{score:+.2f}", **looks)
    axes.margins(x=0.15)
    axes.set_xlabel(f"{_SCALE_NAME}; blue: for, rust: against", fontsize=8)
    axes.tick_params(length=0)
    for side_name in ("top", "right", "left"):
        axes.spines[side_name].set_visible(False)


def _text(figure: Figure, explanation: Explanation) -> None:
    parts = explanation.parts[:_MOST_TOKENS]
    largest = max((abs(part.score) for part in parts), default=0.0) or 1.0
    rows: list[list[tuple[int, str, float]]] = [[]]
    column = 0
    for part in parts:
        piece = shown(part.name)
        joined = piece.startswith("##") and len(piece) > 2
        piece = piece[2:] if joined else piece
        gap = 0 if joined or not rows[-1] else 1
        if rows[-1] and column + gap + len(piece) > _LINE:
            rows.append([])
            column, gap = 0, 0
        rows[-1].append((column + gap, piece, part.score))
        column += gap + len(piece)
    more = len(explanation.parts) - len(parts)
    height = 1.3 + 0.32 * (len(rows) + (more > 0))
    figure.set_size_inches(_WIDTH, height)
    axes = figure.add_subplot(xlim=(-0.5, _LINE + 0.5), ylim=(len(rows) + (0.6 if more else 0), 0))
    axes.axis("off")
    from matplotlib.patches import Rectangle

    for number, row in enumerate(rows):
        for start, piece, score in row:
            strength = 0.8 * abs(score) / largest
            colour = FOR if score > 0 else AGAINST
            box = Rectangle((start - 0.1, number + 0.1), len(piece) + 0.2, 0.8, color=colour, alpha=strength, lw=0)
            axes.add_patch(box)
            ink = "white" if strength > 0.55 else INK
            looks: dict[str, Any] = {
                "family": "monospace",
                "fontsize": 8.5,
                "color": ink,
                "ha": "center",
                "va": "center",
            }
            axes.text(start + len(piece) / 2, number + 0.52, piece, parse_math=False, **looks)
    if more:
        axes.text(0, len(rows) + 0.4, f"and {more} tokens more", fontsize=8, color=MUTED)


def _image(figure: Figure, explanation: Explanation) -> None:
    assert explanation.shown is not None
    values = explanation.attribution.values.numpy().sum(axis=0)
    picture = explanation.shown if len(explanation.shown) == 3 else explanation.shown.mean(axis=0)
    left, right = figure.subplots(1, 2)
    if picture.ndim == 3:
        low, high = picture.min(), picture.max()
        left.imshow((picture.transpose(1, 2, 0) - low) / ((high - low) or 1.0), interpolation="nearest")
    else:
        left.imshow(picture, cmap="gray", interpolation="nearest")
    left.set_title("the picture", fontsize=8, color=MUTED)
    _heat(figure, right, values, equal=True)
    right.set_title("what each pixel adds", fontsize=8, color=MUTED)
    for axes in (left, right):
        axes.set_xticks([])
        axes.set_yticks([])
    figure.set_size_inches(_WIDTH, 4.6)


def _signal(figure: Figure, explanation: Explanation) -> None:
    assert explanation.shown is not None
    values, signal = explanation.attribution.values.numpy(), explanation.shown
    channels = len(values)
    figure.set_size_inches(_WIDTH, 1.8 + 0.45 * min(channels, 24))
    axes = figure.add_subplot()
    _heat(figure, axes, values, equal=False)
    sizes = np.abs(signal - signal.mean(axis=1, keepdims=True)).max(axis=1, keepdims=True)
    curves = np.arange(channels)[:, None] - 0.45 * (signal - signal.mean(axis=1, keepdims=True)) / np.where(
        sizes > 0, sizes, 1
    )
    for curve in curves:
        axes.plot(curve, color=INK, linewidth=0.7)
    axes.set_yticks(range(channels), labels=[str(number) for number in range(channels)])
    axes.set_ylabel("channel", fontsize=8)
    axes.set_xlabel("time (samples); lines: the signal", fontsize=8)


def _heat(figure: Figure, axes: Any, values: Any, *, equal: bool) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    largest = float(np.abs(values).max()) or 1.0
    colours = LinearSegmentedColormap.from_list("for and against", [AGAINST, "white", FOR])
    drawn = axes.imshow(
        values, cmap=colours, vmin=-largest, vmax=largest, interpolation="nearest", aspect="equal" if equal else "auto"
    )
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label(f"{_SCALE_NAME}; blue: for, rust: against", fontsize=8)
    bar.ax.tick_params(labelsize=7)
