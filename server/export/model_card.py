"""`MODEL_CARD.md`: what a model is, what it was trained on, what was promised to whom, and what it isn't for (Mitchell
et al. 2019, arXiv 1810.03993)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from shared_models.cards import card_for
from shared_models.parameters import size_of
from shared_models.plan import Plan
from shared_models.registry import dry


def model_card(plan: Plan, summary: Mapping[str, Any], *, best: bool = False, changes: Sequence[str] = ()) -> str:
    """The card of a run's model, in Markdown. It holds nothing that the run's summary doesn't.

    Args:
        plan: resolved.
        summary: as in `summary.json`.
        best: whether it is of the model with the best evaluation, in place of the last.
        changes: what was done to the weights after training, a phrase each.
    """
    return "\n".join(_lines(plan, summary, best, changes)) + "\n"


def _lines(plan: Plan, summary: Mapping[str, Any], best: bool, changes: Sequence[str]) -> Iterator[str]:
    card, size = card_for(plan.data), size_of(dry(plan))
    yield f"# {plan.name}"
    yield ""
    yield f"Trained by federated learning with Veil: plan `{summary['plan_digest'][:16]}`, {summary['rounds']} rounds."
    yield ""
    yield "## Model"
    yield ""
    yield f"- network: `{plan.model.name}`, {size.trained:,} trained numbers" + (
        f", {size.frozen:,} frozen" if size.frozen else ""
    )
    if plan.features is not None:
        yield f"- on the features `{plan.features.name}`, which are public and were not trained here"
    what = "the next token" if card.at_each_place else f"one of {len(card.classes)} classes: {_listed(card.classes)}"
    yield f"- takes examples of shape {card.input_shape}, says {what}"
    if best and summary.get("best"):
        yield f"- the model of round {summary['best']['round']}, which had the best evaluation"
    if changes:
        yield f"- changed after training: {', '.join(changes)}"
    yield ""
    yield "## Data"
    yield ""
    yield f"- `{plan.data.name}`: {card.source}; licence: {card.licence}"
    yield f"- {summary['setting']} of {len(summary['privacy'].get('clients') or [])} clients"
    yield ""
    yield "## Privacy"
    yield ""
    yield from _privacy(plan, summary["privacy"])
    yield ""
    yield "## Evaluation"
    yield ""
    yield from _evaluation(plan, summary, best)
    if changes:
        yield "These figures are of the network before it was changed; `check.json` says how far the two are apart."
    yield ""
    yield "## Limits"
    yield ""
    yield "- How well it does on people or places that are not in this data was not measured."
    yield "- Differences between groups of people were not measured unless the run's report shows them."
    if plan.is_private:
        yield "- The privacy figures hold under the conditions above, for the training: not for what users send."
    else:
        yield "- It may repeat what single records hold: nothing was done to prevent that."


def _evaluation(plan: Plan, summary: Mapping[str, Any], best: bool) -> Iterator[str]:
    chosen = summary.get("best") if best else None
    found, when = summary.get("final") or {}, "after the last round"
    if chosen:
        found = {chosen["metric"]: chosen["value"]}
        when = f"after round {chosen['round']}, which was chosen by this very figure: read it as somewhat too good"
    if not found:
        yield "The run evaluated nothing."
        return
    where = "the server's own test records" if plan.evaluation.where == "server" else "records that clients held out"
    yield f"On {where}, {when}:"
    yield ""
    yield from (f"- {name.replace('_', ' ')}: {value:.4g}" for name, value in found.items())
    yield ""


def _privacy(plan: Plan, privacy: Mapping[str, Any]) -> Iterator[str]:
    if not plan.is_private:
        yield "None: plain federated learning protects nobody."
        return
    epsilon = privacy["epsilon_max"]
    shown = "not finite" if epsilon is None else f"{epsilon:.4g}"
    yield f"- epsilon {shown} at delta {privacy['delta']:g}, for: {privacy['unit']} ({privacy['relation']})"
    yield f"- who must be trusted: {plan.privacy.trust}; accountant: {privacy['accountant']}"
    yield f"- how settings were chosen: {privacy['selection']}"
    claim = privacy.get("claim")
    yield f"- claim: {claim}" if claim else "- **no claim**:"
    yield from (f"  - {one['text']}" for one in (privacy.get("withdrawn") or []) if not claim)
    for title, key in (("It rests on", "assumptions"), ("Not protected", "disclosed")):
        remarks = privacy.get(key) or []
        if remarks:
            yield f"- {title}:"
            yield from (f"  - {one['text']}" for one in remarks)


def _listed(classes: tuple[str, ...], most: int = 12) -> str:
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    return ", ".join(classes[:most]) + more
