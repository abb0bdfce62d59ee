"""The public images."""

from __future__ import annotations

import sys

import pytest
import torch

from security.errors import UsageError
from shared_models.features import public_images as module
from shared_models.features.public_images import public_digest, public_images


def test_they_come_in_parts_of_grey_images_from_black_to_white() -> None:
    parts = list(public_images(1500, (28, 20), seed=1))
    assert [part.shape for part in parts] == [(1000, 1, 28, 20), (500, 1, 28, 20)]
    whole = torch.cat(parts)
    assert whole.dtype == torch.float32
    assert float(whole.min()) == 0
    assert 0.9 < float(whole.max()) <= 1
    assert float(whole.std(dim=(1, 2, 3)).median()) > 0.05


def test_the_same_seed_gives_the_same_images_and_another_others() -> None:
    once, again, other = (next(public_images(50, (16, 16), seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_one_of_ten_is_a_silhouette_by_itself_unless_they_are_not_wanted() -> None:
    both, without = (next(public_images(200, (28, 28), seed=1, plain=plain)) for plain in (True, False))
    assert torch.equal(both[20:], without[20:])
    grey = [
        ((part[:20] > 0.05) & (part[:20] < 0.95)).float().sum() / (part[:20] > 0.05).sum() for part in (both, without)
    ]
    assert float(grey[0]) < 0.3
    assert float(grey[1]) > 0.9


def test_the_digest_is_that_of_the_files_on_every_machine() -> None:
    assert public_digest() == "e4b1bad3b1a0e56d16c81d72e86c38aaf95d74441853c67d05585e84e8de964b"


def test_without_pillow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UsageError, match=r"pip install 'veil-fl\[images\]'"):
        next(public_images(1, (16, 16), seed=1))


def test_a_missing_photograph_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PHOTOGRAPHS", ("none.jpg",))
    with pytest.raises(UsageError, match=r"none\.jpg: is missing; reinstall scikit-learn"):
        public_digest()
