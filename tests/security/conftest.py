"""A small federation, made once, and copied for each test that changes something."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from security.kits import make_kits
from tests.security.small_federation import FEDERATION_TOML, Homes, Signer


@pytest.fixture(scope="session")
def signer() -> Signer:
    return Signer()


@pytest.fixture(scope="session")
def other_signer() -> Signer:
    """Another authority that says it is of the same federation."""
    return Signer()


@pytest.fixture(scope="session")
def stranger() -> Signer:
    """The authority of another federation."""
    return Signer("lung-study")


@pytest.fixture(scope="session")
def federation_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("federation") / "federation.toml"
    path.write_text(FEDERATION_TOML)
    return path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, federation_file: Path) -> Homes:
    """Homes that no test may change."""
    folder = tmp_path_factory.mktemp("kits")
    make_kits(federation_file, folder, now=time.time())
    return Homes(folder)


@pytest.fixture
def homes(made: Homes, tmp_path: Path) -> Homes:
    """Homes of a test's own."""
    shutil.copytree(made.folder, tmp_path / "homes")
    return Homes(tmp_path / "homes")
