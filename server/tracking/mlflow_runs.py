"""MLflow: a run in the experiment that is named by the plan, in a database or at a tracking server.

The low-level client is used: the usual one adds the user's name, the program's path, the commit and the machine. The
library's own telemetry is off, and a server that does not answer is given up soon.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from server.tracking.facts import Figures, RunFacts, Words

_ID: Final = "veil.run"
_QUIET: Final = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
_PATIENCE: Final = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_NO_FILES: Final = "mlflow-artifacts:/"
"""A run's files are in its own folder: a place for them here would be a path of this machine."""
_AT_ONCE: Final = 100  # parameters, which servers limit


class MlflowRuns:
    """A client of a tracking server, or of a database in a folder."""

    def __init__(self, where: str | Path) -> None:
        os.environ.update(_QUIET)
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        if isinstance(where, Path):
            where.mkdir(parents=True, exist_ok=True)
            os.environ.setdefault("_MLFLOW_SERVER_ARTIFACT_ROOT", _NO_FILES)  # a new database notes the working folder
            where = f"sqlite:///{where / 'mlflow.db'}"
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client: Any = MlflowClient(where)
        self._run = ""
        self._names: dict[str, str] = {}

    def start(self, facts: RunFacts, plan: Mapping[str, float | str]) -> None:
        """A new run; or the same one, where it goes on."""
        from mlflow.entities import Param, RunStatus

        found = self._client.get_experiment_by_name(facts.name)
        experiment = (
            self._client.create_experiment(facts.name, artifact_location=_NO_FILES)
            if found is None
            else found.experiment_id
        )
        identity = f"{facts.run} {facts.plan_digest}"
        known = self._client.search_runs([experiment], f"tags.`{_ID}` = '{_quoted(identity)}'") if facts.done else []
        if known:
            self._run = known[0].info.run_id
            self._client.update_run(self._run, status=RunStatus.to_string(RunStatus.RUNNING))
            return
        tags = {_ID: identity, "veil.plan_digest": facts.plan_digest, "veil.setting": facts.setting}
        self._run = self._client.create_run(experiment, run_name=facts.run, tags=tags).info.run_id
        params = [Param(key, str(value)) for key, value in plan.items()]
        for first in range(0, len(params), _AT_ONCE):
            self._client.log_batch(self._run, params=params[first : first + _AT_ONCE])

    def round(self, number: int, figures: Figures) -> None:
        """Its numbers, by round."""
        self._log({f"round/{key}": value for key, value in figures.items()}, number)

    def end(self, figures: Figures, words: Words) -> None:
        """The summary; a run that was cut off is marked as such."""
        self._log({f"summary/{key}": value for key, value in figures.items()}, int(figures.get("rounds", 0)))
        for key, value in words.items():
            self._client.set_tag(self._run, f"veil.{key}", value)
        stopped = words.get("stopped")
        status = "KILLED" if not words else "FAILED" if stopped == "failed" else "FINISHED"
        self._client.set_terminated(self._run, status=status)

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, metrics=[Metric(key, value, now, step) for key, value in figures.items()])


def _quoted(text: str) -> str:
    return text.replace("'", "")
