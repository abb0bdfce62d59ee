"""The process that a contender runs in, always a new one: `python -m ... contender TASK`, and one line of JSON back."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Final

from simulations.benchmarks.engines.playing import Task, be_alone, in_one_line

MODULES: Final = {"floor": "floor", "inline": "veil", "ray": "veil_ray", "flower": "flower", "pfl": "pfl_research"}
"""Where each contender is; imported in its own process alone."""


def main(arguments: Sequence[str]) -> int:
    """Play a task and print what came of it; whatever goes wrong is one line too."""
    task = Task.from_text(arguments[0])
    be_alone()
    warnings.filterwarnings("ignore")
    try:
        module: Any = importlib.import_module(f"simulations.benchmarks.engines.{MODULES[task.contender]}")
        answer: str = module.play(task).to_text()
    except Exception as error:
        print(json.dumps({"error": in_one_line(error)}), flush=True)
        return 1
    print(answer, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
