"""The table [personal] of a plan: what of a model is each client's own, and never leaves it.

`head`: the last layers are each client's own (Arivazhagan et al. 2019, arXiv 1912.00818); the body below is shared.
`finetune`: after the last round each client trains the shared model on, for itself. `ditto`: each client trains a model
of its own beside the shared one, pulled towards it (Li et al. 2021, arXiv 2012.04221).

Under local privacy a head is trained by the same noisy steps as the body: one clip over both, and noise in both. A head
that followed the raw records would be a secret memory of them which every later gradient of the body passes through:
what a record moves in a step would then be no longer bounded by the clip, given what was released, and the steps would
not compose. As it is, body and head are both post-processing of what was charged. The models of `finetune` and `ditto`
follow the raw records, and nothing that leaves follows from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import Field

from security.errors import UsageError
from shared_models.plan_scaffold import is_scaffold
from shared_models.plan_section import Positive, Section

if TYPE_CHECKING:  # a site reads plans before it has torch
    from torch import nn

    from shared_models.parameters import Layout
    from shared_models.plan import Plan

_KIND: Final = "head, finetune or ditto."


class HeadPersonal(Section):
    """The last layers are each client's own; the rest is shared."""

    kind: Literal["head"] = Field("head", description=_KIND)
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, strict=False, description="Layers (or parameters) that stay, by name; default: the network's last layer."
    )


class FinetunePersonal(Section):
    """After the last round each client trains the shared model on, on its own records."""

    kind: Literal["finetune"] = Field("finetune", description=_KIND)
    epochs: Annotated[int, Field(ge=1, le=100)] = Field(5, description="Passes over the client's records.")
    learning_rate: Positive | None = Field(None, description="Of these passes; default: training.learning_rate.")


class DittoPersonal(Section):
    """Each client trains a model of its own beside the shared one, pulled towards it."""

    kind: Literal["ditto"] = Field("ditto", description=_KIND)
    pull: Positive = Field(0.1, description="Weight of the pull towards the shared model (lambda in the paper).")
    learning_rate: Positive | None = Field(None, description="Of the own model; default: that of the round.")


PersonalPlan = Annotated[HeadPersonal | FinetunePersonal | DittoPersonal, Field(discriminator="kind")]


def has_own_head(plan: Plan) -> bool:
    """Whether a part of the network is each client's own."""
    return isinstance(plan.personal, HeadPersonal)


def own_parameters(plan: Plan, model: nn.Module) -> frozenset[str]:
    """Names of the trained parameters that never leave a client; none where the whole network is shared.

    Raises:
        UsageError: the plan names a layer that isn't there or isn't trained, or leaves nothing to be shared.
    """
    if not isinstance(plan.personal, HeadPersonal):
        return frozenset()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    layers = plan.personal.layers or (last_layer(model),)
    found: set[str] = set()
    for layer in layers:
        own = {name for name in trained if name == layer or name.startswith(f"{layer}.")}
        if not own:
            known = sorted({name.rpartition(".")[0] or name for name in trained})
            raise UsageError(
                f"personal.layers: the network '{plan.model.name}' has no trained layer {layer!r}; there are: "
                f"{', '.join(known)}"
            )
        found |= own
    if len(found) == len(trained):
        raise UsageError(
            f"personal.layers = {list(layers)}: is all that the network '{plan.model.name}' trains, so nothing would "
            "be shared; name fewer, or take a network with more layers"
        )
    return frozenset(found)


def last_layer(model: nn.Module) -> str:
    """Name of the layer whose parameters come last.

    Raises:
        UsageError: nothing is trained.
    """
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    if not trained:
        raise UsageError("personal.kind = 'head': the network trains nothing")
    return trained[-1].rpartition(".")[0] or trained[-1]


def shared_layout(plan: Plan, model: nn.Module) -> Layout:
    """The layout of what of a plan's network travels.

    Raises:
        UsageError: as `own_parameters`.
    """
    from shared_models.parameters import Layout, layout_of

    whole = layout_of(model, plan.federation.wire, plan.federation.top_fraction)
    own = own_parameters(plan, model)
    if not own:
        return whole
    entries = tuple((name, shape) for name, shape in whole.entries if name not in own)
    return Layout(entries=entries, wire=whole.wire, top_fraction=whole.top_fraction)


def filled_personal(plan: Plan, model: nn.Module) -> HeadPersonal | FinetunePersonal | DittoPersonal | None:
    """The plan's table with its defaults written out.

    Raises:
        UsageError: as `own_parameters`.
    """
    own_parameters(plan, model)
    if isinstance(plan.personal, HeadPersonal) and plan.personal.layers is None:
        return HeadPersonal(layers=(last_layer(model),))
    if isinstance(plan.personal, FinetunePersonal) and plan.personal.learning_rate is None:
        return plan.personal.model_copy(update={"learning_rate": plan.training.learning_rate})
    return plan.personal


def check_personal(plan: Plan) -> None:
    """Refuse what personal models aren't made for.

    Raises:
        ValueError: key path, what was given, what is allowed.
    """
    personal, trust = plan.personal, plan.privacy.trust
    if personal is None:
        return
    if trust in ("distributed", "central"):
        raise ValueError(
            f"personal.kind = '{personal.kind}' with privacy.trust = '{trust}' is not offered; allowed: none, local"
        )
    if not isinstance(personal, HeadPersonal):
        return
    if plan.evaluation.where == "server":
        raise ValueError(
            "evaluation.where = 'server': with personal.kind = 'head' the server has no whole model to judge; allowed: "
            "clients, none"
        )
    if is_scaffold(plan):
        raise ValueError(
            "federation.strategy = 'scaffold' with personal.kind = 'head' is not offered; allowed: another "
            "strategy, or another kind"
        )


def check_whole(plan: Plan) -> None:
    """Refuse to make a model of what a run's folder holds where that is a part of one.

    Raises:
        UsageError: heads are the clients' own.
    """
    if isinstance(plan.personal, HeadPersonal):
        raise UsageError(
            "personal.kind = 'head': this run's folder holds the shared part of the network alone; a whole model is at "
            "each client (a site has its own under personal/ in its home)"
        )
