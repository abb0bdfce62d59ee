"""An environment of its own for pfl-research, whose dependencies don't go with Veil's."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path
from typing import Final

from security.errors import RunError
from simulations.benchmarks.engines.playing import in_one_line

_CONSTRAINTS: Final = Path(__file__).resolve().parents[3] / "constraints.txt"
# As in the Makefile: torch's small CPU build where its index can be reached, else what pip finds.
_INDEX: Final = ("--extra-index-url", "https://download.pytorch.org/whl/cpu", "--retries", "0", "--timeout", "15")
_PFL: Final = "pfl==0.6.*"


def pfl_python(folder: Path) -> Path:
    """Its interpreter; the environment is made if it isn't there, or isn't finished.

    Raises:
        RunError: it can't be made.
    """
    python, finished = folder / "bin" / "python", folder / ".finished"
    if finished.is_file():
        return python
    try:
        venv.create(folder, with_pip=True, clear=folder.exists())
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for wanted in ((_torch(), *_INDEX), (_PFL,)):
            subprocess.run([*pip, *wanted], check=True, capture_output=True, text=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or "").strip().splitlines()
        raise RunError(f"pfl-research can't be installed: {said[-1] if said else in_one_line(error)}") from error
    finished.touch()
    return python


def _torch() -> str:
    """The version that Veil is tested with."""
    lines = _CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))
