"""Veil: privacy-preserving federated learning.

    from veil import Plan, simulate, repeat, load_run

    run = simulate(Plan.load("digits"))
    run.metrics     # one row a round, a pandas frame
    run.model()     # the trained network
    run.report      # who spent what
    repeat(Plan.load("digits"), 3).mean("accuracy")

Users import `veil` alone; the packages beside it (`server`, `client`, ...) are its floors.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from security.errors import RunError as RunError
    from security.errors import UsageError as UsageError
    from simulations.repeat import Repeated as Repeated
    from simulations.results import Run as Run
    from simulations.results import load_run as load_run
    from veil.api import Plan as Plan
    from veil.api import repeat as repeat
    from veil.api import resume as resume
    from veil.api import simulate as simulate

__all__ = ["Plan", "Repeated", "Run", "RunError", "UsageError", "load_run", "repeat", "resume", "simulate"]

_HOMES = {
    "Plan": "veil.api",
    "simulate": "veil.api",
    "repeat": "veil.api",
    "resume": "veil.api",
    "Repeated": "simulations.repeat",
    "Run": "simulations.results",
    "load_run": "simulations.results",
    "UsageError": "security.errors",
    "RunError": "security.errors",
}
_SIBLINGS = ("security", "privacy", "shared_models", "client", "server", "simulations")


def _refuse_strangers() -> None:
    """A user's own `server.py` must not be taken for ours, nor ours for his: say so at once, by name and path."""
    home = Path(__file__).resolve().parent.parent
    for name in _SIBLINGS:
        if name in sys.modules:
            found = getattr(sys.modules[name], "__file__", None)
        else:
            spec = importlib.util.find_spec(name)
            found = None if spec is None else spec.origin
        if found is None or Path(found).resolve() != home / name / "__init__.py":
            where = found or "nothing that can be imported"
            raise ImportError(
                f"Veil's package '{name}' is hidden by {where}; rename that file or folder, or run from another folder"
            )


_refuse_strangers()


def __getattr__(name: str) -> Any:
    """Import on first use: torch and Ray take seconds that `veil --help` need not spend."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'veil' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
