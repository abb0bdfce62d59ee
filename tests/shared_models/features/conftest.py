"""A cache folder of the test's own, and matrices learnt from few images: they are as good to test with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shared_models.features import matrices as matrices_module
from shared_models.features import store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "derive", lambda chosen, shape: matrices_module.derive(chosen, shape, images=100))
    store.matrices.cache_clear()
    yield tmp_path / "cache"
    store.matrices.cache_clear()
