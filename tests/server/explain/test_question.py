"""A question is read from its asker's file; what is none is one line that repeats nothing of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from security.errors import UsageError
from server.explain.question import read_question
from tests.server.export.test_inputs import TABLE, TEXT, VALUES, inputs

IMAGE = inputs(name="image-folder", path="x", card={"classes": ["a", "b"], "input_shape": [3, 4, 5]})


def test_a_line_of_a_table_without_its_other_columns(tmp_path: Path) -> None:
    file = tmp_path / "people.csv"
    file.write_text("\ufeffname, age,sex,ill\nAnn,40,f,yes\nBob,41,m,no\n")
    assert read_question(TABLE, file=file, row=2) == {"age": "41", "sex": "m"}
    with pytest.raises(UsageError, match="holds 2 questions; say which with --row"):
        read_question(TABLE, file=file)
    with pytest.raises(UsageError, match=r"--row 3: .* holds 2"):
        read_question(TABLE, file=file, row=3)


def test_json_holds_one_or_several(tmp_path: Path) -> None:
    one, several, lines = tmp_path / "1.json", tmp_path / "2.json", tmp_path / "3.jsonl"
    record = {"age": 40, "sex": "f"}
    one.write_text(json.dumps(record))
    several.write_text(json.dumps([record, {"age": 1, "sex": "m"}]))
    lines.write_text(f"{json.dumps(record)}\n\n{json.dumps(record)}\n")
    assert read_question(TABLE, file=one) == read_question(TABLE, file=several, row=1) == record
    assert read_question(TABLE, file=lines, row=2) == record
    image = np.zeros((1, 8, 8)).tolist()
    one.write_text(json.dumps(image))
    several.write_text(json.dumps([image, image]))
    assert read_question(VALUES, file=one) == read_question(VALUES, file=several, row=2) == image


def test_arrays_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL.ImageFile")
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)  # as WeasyPrint does when it is imported
    pixels = np.arange(128, dtype=np.float32).reshape(2, 1, 8, 8)
    np.save(tmp_path / "a.npy", pixels)
    np.savez(tmp_path / "a.npz", x=pixels[0], y=np.zeros(1))
    assert np.array_equal(read_question(VALUES, file=tmp_path / "a.npy", row=2), pixels[1])
    assert np.array_equal(read_question(VALUES, file=tmp_path / "a.npz"), pixels[0])
    pillow = pytest.importorskip("PIL.Image")
    colours = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    pillow.fromarray(colours).save(tmp_path / "a.png")
    found = read_question(IMAGE, file=tmp_path / "a.png")
    assert np.allclose(found, colours.transpose(2, 0, 1) / 255)
    pillow.fromarray(colours[:3]).save(tmp_path / "b.png")
    with pytest.raises(UsageError, match=r"is 5 x 3 pixels .* the model asks for 5 x 4"):
        read_question(IMAGE, file=tmp_path / "b.png")
    with pytest.raises(UsageError, match="go from 0 to 16"):
        read_question(VALUES, file=tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(UsageError, match="is damaged"):
        read_question(IMAGE, file=tmp_path / "b.png")


def test_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("good film\n")
    assert read_question(TEXT, file=tmp_path / "a.txt") == "good film"
    assert read_question(TEXT, text="bad") == "bad"


@pytest.mark.parametrize(
    ("form", "name", "content", "reason"),
    [
        (TABLE, "a.csv", b"age,sex\n40,f,SECRET\n", "record 1 has more or fewer fields"),
        (TABLE, "a.csv", b"age,sex\n40\n", "record 1 has more or fewer fields"),
        (TABLE, "a.csv", b'age,sex\n"SECRET', "is not a CSV file"),
        (TABLE, "a.csv", b"age,sex\n", "holds no question"),
        (TABLE, "a.json", b'{"age": SECRET', "is not JSON"),
        (TABLE, "a.json", b"[" * 100_000, "is not JSON"),
        (TABLE, "a.json", b"\xff\xfe\x00", "is not UTF-8"),
        (TABLE, "a.npy", b"SECRET", "should hold a record"),
        (VALUES, "a.npy", b"SECRET", "is not an array file"),
        (VALUES, "a.npz", b"SECRET", "is not an array file"),
        (VALUES, "a.csv", b"1,2", r"should hold numbers of shape \(1, 8, 8\)"),
        (TEXT, "a.csv", b"a", "should hold a text"),
    ],
)
def test_what_holds_no_question_is_one_line(
    tmp_path: Path, form: object, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=reason) as caught:
        read_question(form, file=tmp_path / name)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)


def test_pickled_objects_are_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"run": "me"}], dtype=object), allow_pickle=True)
    with pytest.raises(UsageError, match="is not an array file"):
        read_question(VALUES, file=tmp_path / "a.npy")


def test_nothing_both_and_no_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give --input FILE, or --text"):
        read_question(TEXT)
    with pytest.raises(UsageError, match="give --input FILE, or --text"):
        read_question(TEXT, text="x", file=tmp_path)
    with pytest.raises(UsageError, match="reads no texts"):
        read_question(TABLE, text="x")
    with pytest.raises(UsageError, match="--row: goes with --input"):
        read_question(TEXT, text="x", row=1)
    with pytest.raises(UsageError, match="can't be read"):
        read_question(TABLE, file=tmp_path / "no.csv")
