"""A finished run, read back from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from security.errors import UsageError
from server.run_folder import RunFolder, read_parameters
from shared_models.parameters import set_parameters
from shared_models.plan import Plan
from shared_models.plan_personal import check_whole
from shared_models.registry import build_for

if TYPE_CHECKING:
    import pandas
    import torch


@dataclass(frozen=True)
class Run:
    """What a run left behind.

    Attributes:
        path: the run's folder.
    """

    path: Path

    @cached_property
    def plan(self) -> Plan:
        """The resolved plan."""
        return self._folder.read_plan()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Final metrics, timings and privacy, as in `summary.json`."""
        return self._folder.read_summary()

    @property
    def stopped(self) -> str | None:
        """Why the run ended early: target, plateau, budget, failed; None if all rounds were played."""
        stopped = self.summary["stopped"]
        return None if stopped is None else str(stopped)

    @property
    def report(self) -> dict[str, Any]:
        """The privacy part of the summary: unit, trust, relation, epsilons of each client, what withdraws the claim."""
        report: dict[str, Any] = self.summary["privacy"]
        return report

    @cached_property
    def metrics(self) -> pandas.DataFrame:
        """One row a round, indexed by round; evaluation metrics are columns of their own."""
        import pandas

        rows = []
        for line in self._folder.read_metrics():
            evaluation = line.pop("evaluation") or {}
            faults = line.pop("faults")
            rows.append({**line, "faults": len(faults), **evaluation})
        frame = pandas.DataFrame(rows)
        return frame.set_index("round") if rows else frame

    def model(self, *, best: bool = False) -> torch.nn.Module:
        """The trained network, in evaluation mode; `best` gives the one with the best evaluation.

        Raises:
            UsageError: the file is missing or damaged.
        """
        check_whole(self.plan)
        network = build_for(self.plan)
        path = self._folder.best_model if best else self._folder.model
        try:
            set_parameters(network, read_parameters(path))
        except (KeyError, RuntimeError) as error:
            raise UsageError(f"{path}: is not a model of this plan") from error
        return network.eval()

    @property
    def _folder(self) -> RunFolder:
        return RunFolder(self.path)


def load_run(path: str | Path) -> Run:
    """A run by its folder.

    Raises:
        UsageError: there is no run.
    """
    run = Run(Path(path))
    if not RunFolder(run.path).plan.is_file():
        raise UsageError(f"{path}: no run here (plan.toml is missing)")
    return run
