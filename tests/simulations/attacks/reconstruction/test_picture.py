"""The picture: what is embedded is a PNG of the very pixels, and the whole is well-formed."""

from __future__ import annotations

import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from simulations.attacks.reconstruction.picture import Strip, draw, png


def test_a_png_holds_the_pixels() -> None:
    image = pytest.importorskip("PIL.Image")
    values = np.arange(64).reshape(8, 8) / 63
    read = np.asarray(image.open(io.BytesIO(png(values))))
    assert read.shape == (64, 64)
    assert (read[::8, ::8] == np.rint(values * 255)).all()
    assert np.asarray(image.open(io.BytesIO(png(values[:5, :7])))).shape == (45, 63)


def test_each_original_stands_above_its_reconstruction() -> None:
    dark, bright = np.zeros((8, 8)), np.ones((8, 8))
    strip = Strip(originals=[dark, dark], found=[bright, dark], said="PSNR <1 & more")
    text = draw(["digits", "others"], [("no protection", [strip, None])], title="what was seen")
    root = ElementTree.fromstring(text.encode())
    pictures = [one for one in root.iter() if one.tag.endswith("image")]
    assert len(pictures) == 4
    first, below = (next(one for one in pictures if one.get("href") == _href(image)) for image in (dark, bright))
    assert first.get("x") == below.get("x")
    assert float(first.get("y", "nan")) < float(below.get("y", "nan"))
    assert not re.search(r"\sstyle=", text)


def _href(image: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"
