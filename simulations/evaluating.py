"""The finished model of a run, judged in detail: on the records that were held out, on a file, or on what clients
released.

Of a simulation all records are in one place, so its model is judged by class, group and client, exactly: figures that a
deployment would not have. Of a deployment whose server holds no records there is what the clients released.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from client.datasets.features import as_seen
from client.datasets.judged import judged_records
from client.datasets.records import Records, StrArray
from client.datasets.registry import load_file
from client.workplace import split_key
from security.errors import UsageError
from server.assessment.assess import Subject, assess
from server.assessment.facts import Evaluation
from server.assessment.files import write_evaluation
from server.assessment.released import of_released
from server.class_counts import ClassCounts
from server.evaluation import TestData
from server.export.export import trained_network
from server.run_folder import RunFolder
from shared_models import own
from shared_models.cards import KNOWN


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked of a run's model.

    Attributes:
        by: column whose groups are compared.
        positive: name of the class that their rates are about.
        best: the model with the best evaluation, not the last.
        released: judge it by nothing but what clients released, as a deployment has to.
        data: a file of records to judge it on, in place of those that were held out.
        format: of that file.
        models: networks of the user's own, by the name that the plan gives.
    """

    by: str | None = None
    positive: str | None = None
    best: bool = False
    released: bool = False
    data: Path | None = None
    format: str = "csv"
    models: Mapping[str, str] | None = None


def evaluate_run(folder: RunFolder, question: Question) -> tuple[Evaluation, Path]:
    """Judge a run's model, and write evaluation.json and evaluation.html into its folder.

    Returns:
        What was found, and the page.

    Raises:
        UsageError: the run is not finished, there is no such column or class, or nothing to judge the model on.
        RunError: the files can't be written.
    """
    own.bind(question.models or {})
    facts = _judged(folder, question)
    return facts, write_evaluation(folder, facts)


def _judged(folder: RunFolder, question: Question) -> Evaluation:
    plan, summary = folder.read_plan(), folder.read_summary()
    if plan.statistics is not None:
        raise UsageError(
            f"{folder.path}: its plan has [statistics], so there is no model to judge; see statistics.json"
        )
    simulated = summary["setting"] == "simulation"
    at_hand = simulated or (plan.evaluation.where == "server" and plan.data.name in KNOWN)
    if question.released or (question.data is None and not at_hand):
        return _released(folder, question)
    columns = () if question.by is None else (question.by,)
    file = folder.best_model if question.best else folder.model
    owners = None
    if question.data is not None:
        # All of the file is for testing: no person is bounded, nothing is split off by the key.
        data = plan.data.model_copy(update={"person_column": None, "max_rows_per_person": None})
        records = load_file(data, kind=question.format, path=question.data, split_key=b"not used", columns=columns)
        records, source = as_seen(plan, records, cached=False), "file"
    else:
        found = judged_records(plan, split_key=split_key(plan), columns=columns)
        records, source = found.records, found.holder
        owners = found.owners if simulated else None
    if len(records) == 0:
        raise UsageError(f"{question.data}: holds no record")
    subject = Subject(
        plan=plan,
        setting=summary["setting"],
        model_digest=hashlib.sha256(_bytes(file)).hexdigest(),
        best=question.best,
        source=source,  # type: ignore[arg-type]
        owners=owners,
        columns=_asked(records, question.by),
    )
    network = trained_network(folder, best=question.best)
    return assess(network, TestData(records.x, records.y), subject, by=question.by, positive=question.positive)


def _released(folder: RunFolder, question: Question) -> Evaluation:
    """Of what clients counted by class in the run's last evaluation."""
    if question.by is not None or question.positive is not None or question.best or question.data is not None:
        raise UsageError(
            f"{folder.path}: judged by what clients released, the last model by class alone; leave out --by, "
            "--positive, --best and --data, or give records of your own with --data FILE"
        )
    plan, summary = folder.read_plan(), folder.read_summary()
    if not summary.get("by_class"):
        raise UsageError(
            f"{folder.path}: its clients released no counts by class, and nothing else tells more than summary.json; "
            "give records of your own with --data FILE, or set evaluation.where = 'clients' and evaluation.per_class = "
            "true in the next plan"
        )
    try:
        found = ClassCounts.from_json(summary["by_class"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder.summary}: by_class can't be read") from error
    return of_released(plan, found, setting=summary["setting"])


def _asked(records: Records, column: str | None) -> Mapping[str, StrArray]:
    return {} if column is None else {column: records.groups[column]}


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: can't be read as a model (missing or damaged)") from error
