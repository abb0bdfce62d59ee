"""Fashion-MNIST from a folder, from Debian's package or from the hub, and damaged files."""

import gzip
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.datasets import fashion_mnist
from client.datasets.registry import Loaded, load
from security.errors import UsageError
from shared_models.plan_data import DataPlan

KEY = b"k" * 32
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    sizes = b"".join(size.to_bytes(4) for size in values.shape)
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


def write(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 30), ("t10k", 10)):
        pixels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        write(tmp_path / f"{prefix}-images-idx3-ubyte.gz", idx(pixels))
        write(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", idx(np.arange(n, dtype=np.uint8) % 10))
    return tmp_path


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    fashion_mnist._from_folder.cache_clear()
    fashion_mnist._from_hub.cache_clear()


def from_folder(folder: Path) -> Loaded:
    return load(DataPlan(name="fashion-mnist", path=str(folder)), split_key=KEY)


def test_the_official_test_part_is_kept_whole(folder: Path) -> None:
    loaded = from_folder(folder)
    assert loaded.train.x.shape == (30, 1, 28, 28)
    assert loaded.test.y.tolist() == list(range(10))


def test_pixels_are_normalised_by_the_public_constants(folder: Path) -> None:
    pixels = np.zeros((30, 28, 28), dtype=np.uint8)
    pixels[0, 2, 3] = 255
    write(folder / IMAGES, idx(pixels))
    x = from_folder(folder).train.x
    assert x[0, 0, 2, 3].item() == pytest.approx((1 - 0.286) / 0.353)
    assert x[1:].unique().tolist() == pytest.approx([-0.286 / 0.353])


def test_files_are_parsed_once_per_process(folder: Path) -> None:
    first = from_folder(folder)
    (folder / IMAGES).unlink()
    again = from_folder(folder)
    first.train.x.zero_()  # and what one caller does to its copy is not seen by the next
    assert float(again.train.x.std()) > 0.5


PIXELS = np.zeros((30, 28, 28), dtype=np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (IMAGES, gzip.compress(idx(PIXELS))[:-20], "is cut short or not a gzip file"),
        (IMAGES, b"", "is not an idx file"),
        (IMAGES, b"no gzip at all", "is cut short or not a gzip file"),
        (IMAGES, gzip.compress(idx(PIXELS))[:40] + bytes(200), "is cut short or not a gzip file"),
        (IMAGES, gzip.compress(idx(PIXELS)[:-1]), "holds 23519 bytes of data, its header says 23520"),
        (IMAGES, gzip.compress(idx(PIXELS) + b"\0"), "holds 23521 bytes of data, its header says 23520"),
        (IMAGES, gzip.compress(idx(PIXELS, kind=0x0D)), "is not an idx file of bytes with 3 dimensions"),
        (IMAGES, gzip.compress(idx(PIXELS[:, 0])), "is not an idx file of bytes with 3 dimensions"),
        (IMAGES, gzip.compress(b"\0\0\x08"), "is not an idx file of bytes with 3 dimensions"),
        (IMAGES, gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12), f"its header says {math.prod([2**32 - 1] * 3)}"),
        (IMAGES, gzip.compress(idx(np.zeros((30, 8, 8), dtype=np.uint8))), "images of 8 x 8, not 28 x 28"),
        (LABELS, gzip.compress(idx(np.zeros(29, dtype=np.uint8))), "29 labels for 30 images"),
        (LABELS, gzip.compress(idx(np.full(30, 10, dtype=np.uint8))), "labels above 9"),
        (LABELS, None, "is missing; apt-get install dataset-fashion-mnist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",  # gzip's bytes hold the time
)
def test_damaged_files_are_named_on_one_line(folder: Path, name: str, content: bytes | None, says: str) -> None:
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(UsageError) as error:
        from_folder(folder)
    assert str(error.value).startswith(f"{folder / name}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_debians_package_is_used_without_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", folder)
    assert len(load(DataPlan(name="fashion-mnist"), split_key=KEY).train) == 30


def test_a_path_that_is_not_there_is_not_replaced_by_another_copy(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"data\.path: .*gone does not exist"):
        from_folder(tmp_path / "gone")


def test_the_hub_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    pixels = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(n) for n in range(10)])}
    )
    part = datasets.Dataset.from_dict({"image": list(pixels), "label": [9, 0, 4]}, features=features)
    asked = []

    def hub(name: str) -> datasets.DatasetDict:
        asked.append(name)
        return datasets.DatasetDict(train=part, test=part.select([2]))

    monkeypatch.setattr(datasets, "load_dataset", hub)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "not installed")
    loaded = load(DataPlan(name="fashion-mnist"), split_key=KEY)
    assert asked == [fashion_mnist.HUB]
    assert loaded.train.y.tolist() == [9, 0, 4]
    assert loaded.test.y.tolist() == [4]
    back = (loaded.train.x[:, 0].numpy() * 0.353 + 0.286) * 255
    assert np.allclose(back, pixels, atol=0.01)


def test_without_any_copy_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def offline(name: str) -> None:
        raise ConnectionError("a long story\nover several lines")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "not installed")
    with pytest.raises(UsageError, match=r"apt-get install dataset-fashion-mnist.*--set data\.path=DIR") as error:
        load(DataPlan(name="fashion-mnist"), split_key=KEY)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_the_real_files_have_the_constants_the_card_says() -> None:
    loaded = load(DataPlan(name="fashion-mnist"), split_key=KEY)
    assert (len(loaded.train), len(loaded.test)) == (60_000, 10_000)
    assert loaded.train.y.bincount().tolist() == [6000] * 10
    assert abs(float(loaded.train.x.mean())) < 1e-3
    assert abs(float(loaded.train.x.std()) - 1) < 1e-3
