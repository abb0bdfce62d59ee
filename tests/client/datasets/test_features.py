"""Clients of a simulation share the features of one pool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from client.datasets import features as module
from client.datasets.features import as_seen, seen_parts, seen_records
from client.datasets.partition import client_parts, client_records
from shared_models.features import matrices as matrices_module
from shared_models.features import store
from shared_models.features.store import matrices
from shared_models.plan import Plan

KEY = b"key"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "derive", lambda chosen, shape: matrices_module.derive(chosen, shape, images=100))
    store.matrices.cache_clear()
    module._clients.cache_clear()
    generator = np.random.default_rng(1)
    np.savez(tmp_path / "own.npz", x=generator.random((60, 1, 16, 16), dtype=np.float32), y=np.arange(60) % 3)
    return tmp_path


def plan(folder: Path, where: str = "server", **more: object) -> Plan:
    return Plan.model_validate(
        {
            "data": {
                "name": "npz",
                "path": str(folder / "own.npz"),
                "card": {"input_shape": [1, 16, 16], "classes": ["a", "b", "c"]},
                "partition": {"kind": "iid", "clients": 4},
            },
            "evaluation": {"where": where},
            "model": {"name": "linear"},
            **more,
        },
        strict=False,
    )


def test_without_features_clients_are_as_they_were(folder: Path) -> None:
    assert seen_records(plan(folder), split_key=KEY) is client_records(plan(folder).data, seed=7, split_key=KEY)


def test_each_client_has_the_features_of_its_own_images(folder: Path) -> None:
    own = plan(folder, features={"name": "scattering"})
    found, images = seen_records(own, split_key=KEY), client_records(own.data, seed=own.seed, split_key=KEY)
    assert list(found) == list(images)
    assert len(found) == 4
    for name in images:
        expected = matrices("scattering", (1, 16, 16)).features(images[name].x)
        assert torch.allclose(found[name].x, expected, atol=1e-4)
        assert torch.equal(found[name].y, images[name].y)
    assert found["0"] is found["0"]


def test_what_is_held_out_is_split_by_the_image_not_by_its_features(folder: Path) -> None:
    own = plan(folder, "clients", features={"name": "scattering"})
    found, images = seen_parts(own, split_key=KEY), client_parts(own.data, seed=own.seed, split_key=KEY)
    assert sum(len(held_out) for _, held_out in images.values()) > 0
    for name, parts in images.items():
        for mine, image in zip(found[name], parts, strict=True):
            assert torch.equal(mine.y, image.y)
            assert torch.allclose(
                mine.x, matrices("scattering", (1, 16, 16)).features(image.x).reshape(mine.x.shape), atol=1e-4
            )


def test_the_pool_is_computed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = plan(folder, features={"name": "scattering"})
    first = seen_records(own, split_key=KEY)["1"].x
    module._clients.cache_clear()  # as in another process
    monkeypatch.setattr("shared_models.features.apply._features", None)
    assert torch.equal(seen_records(own, split_key=KEY)["1"].x, first)
    assert len(list((folder / "cache" / "features" / "data").glob("*.npy"))) == 1


def test_a_changed_file_is_read_anew(folder: Path) -> None:
    own = plan(folder, features={"name": "scattering"})
    before = seen_records(own, split_key=KEY)["0"]
    np.savez(folder / "own.npz", x=np.zeros((61, 1, 16, 16), dtype=np.float32), y=np.arange(61) % 3)
    assert seen_records(own, split_key=KEY)["0"] is not before


def test_records_keep_whose_they_are(folder: Path) -> None:
    own = plan(folder, features={"name": "scattering"})
    images = client_records(own.data, seed=own.seed, split_key=KEY)["2"]
    seen = as_seen(own, images, cached=False)
    assert seen.groups == images.groups
    assert not (folder / "cache" / "features" / "data").exists()
