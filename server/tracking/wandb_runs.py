"""Weights & Biases: offline into a folder unless a project at its servers is asked for.

What the library collects by itself is switched off, one by one: machine, statistics of the system, program, code,
requirements, commit, console. What is left of its own are its version, Python's and the platform's name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from security.errors import UsageError
from server.tracking.facts import Figures, RunFacts, Words


class WandbRuns:
    """One run, in a folder or a project."""

    def __init__(self, where: str | Path) -> None:
        os.environ["WANDB_ERROR_REPORTING"] = "false"
        import wandb

        self._wandb: Any = wandb
        self._offline = isinstance(where, Path)
        self._project = "veil" if isinstance(where, Path) else where
        # Online too the library writes what it sends to a file first.
        self._folder = where if isinstance(where, Path) else Path(tempfile.mkdtemp(prefix="veil-wandb-"))
        if not self._offline and not os.environ.get("WANDB_API_KEY") and wandb.Api is not None:
            key = getattr(wandb.api, "api_key", None)
            if not key:
                raise UsageError("no key for the servers of W&B; set WANDB_API_KEY, or use wandb=offline:DIR")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = None

    def start(self, facts: RunFacts, plan: Mapping[str, float | str]) -> None:
        """A new run, or the same one where it goes on."""
        identity = hashlib.sha256(f"{facts.run} {facts.plan_digest}".encode()).hexdigest()[:16]
        settings = self._wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            email="",
            host="",
            username="",
            program="",
            program_abspath="",
            program_relpath="",
            save_code=False,
            silent=True,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = self._wandb.init(
            project=self._project,
            name=facts.run,
            group=facts.name,
            id=identity,
            resume="allow",
            mode="offline" if self._offline else "online",
            dir=str(self._folder),
            config={**plan, "plan_digest": facts.plan_digest, "setting": facts.setting},
            settings=settings,
        )

    def round(self, number: int, figures: Figures) -> None:
        """Its numbers, by round."""
        self._run.log({f"round/{key}": value for key, value in figures.items()}, step=number)

    def end(self, figures: Figures, words: Words) -> None:
        """The summary."""
        for key, value in {**figures, **words}.items():
            self._run.summary[f"summary/{key}"] = value
        logs = Path(self._run.settings.log_dir)
        self._run.finish(exit_code=0 if words else 1)
        shutil.rmtree(logs, ignore_errors=True)  # the library's own, full of paths
        for log in logs.parent.parent.glob("debug*.log"):  # links to them
            log.unlink(missing_ok=True)
        if not self._offline:
            shutil.rmtree(self._folder, ignore_errors=True)
