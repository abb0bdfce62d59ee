"""Originals and their reconstructions side by side, as one SVG with small PNG pictures in it."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from privacy.report.charts import svg

Image = npt.NDArray[np.float64]

_SIDE, _GAP, _NAMES, _HEAD, _APART = 56, 6, 280, 46, 28
_PIXELS: Final = 64  # of a small image's side in the file, so that a viewer that smooths shows squares nevertheless


@dataclass(frozen=True, eq=False, kw_only=True)
class Strip:
    """A few originals, and what was taken for them.

    Attributes:
        originals, found: (height, width) each, from 0 (black) to 1.
        said: the score, in few words.
    """

    originals: Sequence[Image]
    found: Sequence[Image]
    said: str


def draw(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Strip | None]]], *, title: str) -> str:
    """The picture as a file's text.

    Args:
        columns: heading of each.
        rows: name, and a strip for each column, or None.
        title: of all.
    """
    most = max(len(strip.originals) for _, strips in rows for strip in strips if strip is not None)
    column, row = most * (_SIDE + _GAP) + _APART, 2 * (_SIDE + _GAP) + 30
    width, height = _NAMES + len(columns) * column, _HEAD + len(rows) * row + 10
    parts = [svg.element("rect", x=0, y=0, width=width, height=height, fill="#ffffff")]
    parts += [svg.text(name, _NAMES + number * column, 28, size=14, muted=False) for number, name in enumerate(columns)]
    for number, (name, strips) in enumerate(rows):
        top = _HEAD + number * row
        parts.append(svg.text(name, 12, top + 34, size=14, muted=False))
        parts.append(svg.text("original", _NAMES - 12, top + 34, anchor="end"))
        parts.append(svg.text("reconstruction", _NAMES - 12, top + 34 + _SIDE + _GAP, anchor="end"))
        for place, strip in enumerate(strips):
            if strip is not None:
                parts.append(_strip(strip, _NAMES + place * column, top))
    return str(svg.file(svg.document(Markup("").join(parts), width, height, label=title, class_="reconstruction")))


def _strip(strip: Strip, left: float, top: float) -> Markup:
    parts = []
    for line, images in enumerate((strip.originals, strip.found)):
        for place, image in enumerate(images):
            parts.append(
                svg.element(
                    "image",
                    x=left + place * (_SIDE + _GAP),
                    y=top + line * (_SIDE + _GAP),
                    width=_SIDE,
                    height=_SIDE,
                    image_rendering="pixelated",
                    href=f"data:image/png;base64,{base64.b64encode(png(image)).decode()}",
                )
            )
    parts.append(svg.text(strip.said, left, top + 2 * (_SIDE + _GAP) + 10))
    return Markup("").join(parts)


def png(image: Image) -> bytes:
    """A grey PNG (ISO/IEC 15948) of brightness from 0 to 1; small images enlarged by a whole number."""
    times = max(1, _PIXELS // max(image.shape))
    bytes_ = np.rint(image.clip(0, 1) * 255).astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)
    rows = b"".join(b"\0" + row.tobytes() for row in bytes_)
    head = struct.pack(">IIBBBBB", bytes_.shape[1], bytes_.shape[0], 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
