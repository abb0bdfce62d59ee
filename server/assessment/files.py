"""evaluation.json and evaluation.html in a run's folder."""

from __future__ import annotations

from pathlib import Path

from server.assessment.facts import Evaluation, json_text
from server.assessment.page import html
from server.run_folder import RunFolder, write_atomically


def write_evaluation(folder: RunFolder, facts: Evaluation) -> Path:
    """Write both files.

    Returns:
        The page.

    Raises:
        RunError: they can't be written.
    """
    page = html(facts)
    write_atomically(folder.evaluation.with_suffix(".json"), json_text(facts).encode())
    write_atomically(folder.evaluation, page.encode())
    return folder.evaluation
