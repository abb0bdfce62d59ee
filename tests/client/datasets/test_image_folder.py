"""A user's own folder of images, one folder for each class."""

import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.datasets.registry import load
from security.errors import UsageError
from shared_models.plan_data import DataPlan

KEY = b"k" * 32


def plan(folder: Path, shape: tuple[int, ...] = (1, 4, 6), **card: Any) -> DataPlan:
    described = {"classes": ["cat", "dog"], "input_shape": list(shape)} | card
    return DataPlan.model_validate({"name": "image-folder", "path": str(folder), "card": described})


def everything(folder: Path, **asked: Any) -> tuple[np.ndarray, list[int]]:
    loaded = load(plan(folder, **asked), split_key=KEY)
    x = np.concatenate([loaded.train.x.numpy(), loaded.test.x.numpy()])
    return x, loaded.train.y.tolist() + loaded.test.y.tolist()


def draw(path: Path, grey: int = 0, size: tuple[int, int] = (6, 4), mode: str = "L") -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, grey if mode == "L" else (grey, 0, 255)).save(path)


def test_images_are_found_by_class_and_scaled(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png", 0)
    draw(tmp_path / "dog" / "b.PNG", 255)
    draw(tmp_path / "dog" / "c.jpg", 51)
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / ".cache").mkdir()
    x, y = everything(tmp_path, mean=0.5, std=0.5)
    assert x.shape == (3, 1, 4, 6)  # height before width
    values = sorted((float(image.mean()), label) for image, label in zip(x, y, strict=True))
    assert [label for _, label in values] == [0, 1, 1]
    assert [value for value, _ in values] == pytest.approx([-1, -0.6, 1], abs=0.02)


def test_colour_and_grey_are_converted_to_what_the_card_asks(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png", 255, mode="RGB")
    x, _ = everything(tmp_path, shape=(3, 4, 6))
    assert x[0, :, 0, 0].tolist() == [1, 0, 1]
    x, _ = everything(tmp_path, shape=(1, 4, 6))
    assert x[0, 0, 0, 0] == pytest.approx(0.299 + 0.114, abs=0.01)  # luma of ITU-R 601-2


def test_a_class_without_images_is_legal(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    x, _ = everything(tmp_path)
    assert x.shape == (0, 1, 4, 6)


def test_a_folder_that_is_no_class_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "dogs" / "a.png")
    with pytest.raises(UsageError, match=r"dogs is not one of .*did you mean 'dog'"):
        everything(tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no folder named like a class \(cat, dog\)"):
        everything(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"):
        everything(tmp_path / "file")


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png", size=(4, 6))
    with pytest.raises(UsageError, match=r"a\.png: is 4 x 6 pixels .* asks for 6 x 4"):
        everything(tmp_path)


def test_damaged_images_are_named(tmp_path: Path) -> None:
    path = tmp_path / "cat" / "a.png"
    draw(path)
    whole = path.read_bytes()
    data = whole.index(b"IDAT") + 4
    for damaged in (b"", b"not an image", whole[:data], whole[: data + 2] + b"\xff\xff" + whole[data + 4 :]):
        path.write_bytes(damaged)
        with pytest.raises(UsageError, match=r"cat/a\.png: is damaged") as error:
            everything(tmp_path)
        assert "\n" not in str(error.value)


def test_other_formats_behind_a_png_name_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png")
    Image.new("L", (6, 4)).save(tmp_path / "cat" / "a.png", format="BMP")
    with pytest.raises(UsageError, match="not a PNG or JPEG"):
        everything(tmp_path)


@pytest.mark.parametrize("side", [10_000, 100_000])  # below and above where Pillow stops warning and refuses
def test_decompression_bombs_are_refused_before_they_are_unpacked(tmp_path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "bomb.png").write_bytes(png)
    with pytest.raises(UsageError, match=r"bomb\.png: is (damaged, too large|10000 x 10000)"):
        everything(tmp_path)
    # Also where the card asks for that size: Pillow's own limit stands.
    with pytest.raises(UsageError, match=r"bomb\.png: is damaged, too large"):
        load(plan(tmp_path, shape=(1, side, side)), split_key=KEY)


def test_sixteen_bits_would_be_clipped_so_they_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.fromarray(np.full((4, 6), 60_000, dtype=np.uint16)).save(tmp_path / "cat" / "a.png")
    with pytest.raises(UsageError, match="more than 8 bits"):
        everything(tmp_path)


@pytest.mark.parametrize("shape", [(2, 4, 6), (4, 6)])
def test_the_card_must_ask_for_grey_or_colour(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"\[1 or 3, height, width\]"):
        everything(tmp_path, shape=shape)


def test_a_folder_has_no_people(tmp_path: Path) -> None:
    draw(tmp_path / "cat" / "a.png")
    people = plan(tmp_path).model_copy(update={"person_column": "who", "max_rows_per_person": 1})
    with pytest.raises(UsageError, match=r"data\.person_column: .*no column 'who'"):
        load(people, split_key=KEY)


def test_without_pillow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "cat" / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'veil-fl\[images\]'"):
        everything(tmp_path)


def test_a_cut_image_is_damaged_even_if_another_library_would_have_it_filled_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as WeasyPrint does when it is imported
    path = tmp_path / "cat" / "a.png"
    draw(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"IDAT") + 6])
    with pytest.raises(UsageError, match=r"cat/a\.png: is damaged"):
        everything(tmp_path)
