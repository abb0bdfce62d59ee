"""Handing a run's model over: the file, what it takes, what it is, and how far it is from the network in torch."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Final

import torch
from torch import nn

from security.errors import UsageError
from server.export.check import Checked, check
from server.export.formats import FILES, Format, runner, write
from server.export.inputs import Inputs
from server.export.model_card import model_card
from server.export.pruning import pruned
from server.export.served import examples_for, served
from server.run_folder import RunFolder, read_parameters
from shared_models.parameters import set_parameters
from shared_models.plan import Plan
from shared_models.plan_personal import check_whole
from shared_models.registry import build_for

_EXAMPLES: Final = 256
FOLDER: Final = "export"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: of the model's file; beside it `inputs.json`, `check.json` and `MODEL_CARD.md`.
        checked: the comparison with torch.
        zeros: part of the weights that pruning has set to zero; None without.
    """

    path: Path
    checked: Checked
    zeros: float | None


def trained_network(folder: RunFolder, *, best: bool = False) -> nn.Module:
    """The plan's network with a run's weights, in evaluation mode.

    Raises:
        UsageError: there is no run, or its model is missing, damaged or another plan's.
    """
    plan = folder.read_plan()
    if plan.statistics is not None:
        raise UsageError(f"{folder.path}: is a run of statistics, which has no model; see statistics.json there")
    check_whole(plan)
    network, path = build_for(plan), folder.best_model if best else folder.model
    try:
        set_parameters(network, read_parameters(path))
    except (KeyError, RuntimeError) as error:
        raise UsageError(f"{path}: is not a model of this plan") from error
    return network.eval()


def export_run(
    folder: RunFolder,
    format_: Format,
    *,
    out: Path | None = None,
    best: bool = False,
    quantise: bool = False,
    prune: float | None = None,
) -> Exported:
    """Write a run's model in another form, and compare what it computes with torch on made-up examples.

    What is done to a model after training costs no privacy.

    Args:
        folder: the run.
        format_: of the file.
        out: folder to write to; default `export` in the run's folder.
        best: the model with the best evaluation, in place of the last.
        quantise: weights as int8.
        prune: part of the weights to be set to zero.

    Raises:
        UsageError: there is no such model, or it can't be written so.
    """
    plan, out = folder.read_plan(), out or folder.path / FOLDER
    whole = served(plan, trained_network(folder, best=best))
    network, zeros = whole, None
    if prune is not None:
        network = copy.deepcopy(whole)
        try:
            zeros = pruned(network, prune)
        except ValueError as error:
            raise UsageError(f"--prune {prune}: {error}") from error
    examples = examples_for(plan, _EXAMPLES)
    path = out / FILES[format_]
    try:
        out.mkdir(parents=True, exist_ok=True)
        write(network, examples[:2], format_, path, quantise=quantise)
        found = check(whole, runner(format_, path, copy.deepcopy(network)), examples, path)
        changes: tuple[str, ...] = () if zeros is None else (f"{zeros:.0%} of the weights set to zero",)
        changes += ("weights as eight-bit integers",) if quantise else ()
        card = model_card(plan, folder.read_summary(), best=best, changes=changes)
        _describe(out, plan, found, zeros, card)
    except OSError as error:
        raise UsageError(f"{out}: can't be written ({error.strerror}); give --out a folder that can") from error
    return Exported(path=path, checked=found, zeros=zeros)


def _describe(out: Path, plan: Plan, found: Checked, zeros: float | None, card: str) -> None:
    facts = {**dataclasses.asdict(found), "zeros": zeros, "plan_digest": plan.digest(), "torch": torch.__version__}
    _write(out / "check.json", json.dumps(facts, indent=2) + "\n")
    _write(out / "inputs.json", json.dumps(Inputs.of(plan).as_json(), indent=2) + "\n")
    _write(out / "MODEL_CARD.md", card)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
