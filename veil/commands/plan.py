"""`veil plan`: look at a plan before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from veil.own_models import HELP, parse_models

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shared_models.plan import Plan
    from simulations.estimate import Estimate

app = typer.Typer(
    help="Check a plan, or write it out with every default.",
    no_args_is_help=True,
    suggest_commands=False,  # click suggests already
)

PlanName = Annotated[str, typer.Argument(help="Scenario name, or path of a TOML plan.", metavar="PLAN")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key.", metavar="KEY=VALUE")]
Models = Annotated[list[str] | None, typer.Option("--model", help=HELP, metavar="NAME=REFERENCE")]


@app.command("check")
def check(
    plan: PlanName,
    overrides: Overrides = None,
    data: Annotated[bool, typer.Option("--data", help="Also load the data and spread it over the clients.")] = False,
    models: Models = None,
) -> None:
    """Say whether a plan can run, and what it would cost."""
    from server.claim import privacy_unit
    from server.strategies import make_strategy
    from shared_models import own
    from shared_models.resolve import resolve
    from simulations.scenarios import find_plan

    own.bind(parse_models(models))
    found = resolve(find_plan(plan, overrides or ()))
    make_strategy(found)
    looked_at = "data not looked at; --data does"
    if data:
        from simulations.run import load_data

        looked_at = f"data for {len(load_data(found)[1])} clients"
    print(f"{plan}: the plan is good ({looked_at}; digest {found.digest()})")
    privacy = found.privacy
    if not found.is_private:
        print("privacy: none, plain federated learning protects nobody")
        return
    what = (
        f"privacy: unit {privacy_unit(found)}; trust {privacy.trust}; selection {privacy.selection}; epsilon "
        f"{privacy.epsilon:.4g} at delta {privacy.delta:g} over "
    )
    if privacy.trust == "distributed":
        print(what + _secure_sums(found))
        return
    if privacy.trust == "central":
        print(what + _central(found))
        return
    if found.statistics is not None:
        release = found.train_release()
        assert release is not None
        print(f"{what}one release: {release.describe()} (add/remove one, PLD)")
        return
    print(
        f"{what}{found.federation.rounds} rounds of "
        f"{found.training.local_steps} steps, noise multiplier {privacy.noise_multiplier:.4g} (add/remove one, PLD)"
    )


def _secure_sums(plan: Plan) -> str:
    """What the epsilon of secure sums rests on."""
    from server.claim import accountant_of

    spare = f" and {plan.spare_rounds} spare ones" if plan.spare_rounds else ""
    sums, secure, how = plan.secure_parameters(), plan.secure, accountant_of(plan).partition(",")[0]
    seen = "" if secure.masks else "; NO MASKS: the server sees what each client sends"
    return (
        f"{plan.federation.rounds} rounds{spare} of one secure sum each{_batches(plan)}, noise multiplier "
        f"{plan.privacy.noise_multiplier:.4g} (add/remove one, {how}), if of a cohort of {sums.cohort} clients at "
        f"least {sums.honest} honest ones are in the sum and at most {sums.corrupt} collude with the server; a sum of "
        f"fewer than {sums.least} is not opened; {secure.dimension} numbers in a ring of {secure.bits} bits{seen}"
        f"{_adaptive(plan)}"
    )


def _batches(plan: Plan) -> str:
    """What goes into a sum, where it is not what whole rounds of training changed."""
    if not plan.is_joint:
        return ""
    if plan.statistics is not None:
        return f" (histograms of {len(plan.statistics.columns or ())} columns)"
    rate = plan.training.sample_rate
    batch = "all records" if rate == 1 else f"Poisson batches of rate {rate:g}"
    return f" (one step on the clipped gradients of {batch})"


def _central(plan: Plan) -> str:
    """What the epsilon of a trusted server's noise rests on."""
    from server.claim import accountant_of, relation_of
    from shared_models.plan_central import population_of

    secret = "; nobody may learn who takes part in a round" if plan.has_secret_cohorts else ""
    release = plan.train_release()
    assert release is not None
    return (
        f"{plan.federation.rounds} rounds for each of {population_of(plan)} clients ({release.describe()}; "
        f"{relation_of(plan)}, {accountant_of(plan).partition(',')[0]}); the server adds the noise and must be "
        f"trusted{secret}{_adaptive(plan)}"
    )


def _adaptive(plan: Plan) -> str:
    """What a clipping norm that adapts costs: noise, and no epsilon."""
    from shared_models.plan_adaptive import clipping_of, is_adaptive, update_noise

    if not is_adaptive(plan):
        return ""
    clipping = clipping_of(plan)
    return (
        f"; the clipping norm goes from {clipping.initial_norm:g} towards the {clipping.quantile:g} quantile of the "
        f"updates' lengths, within {clipping.least_norm:g} and {clipping.most_norm:g}; with the bits for it, the noise "
        f"on the updates is {update_noise(plan):.4g} times the norm in place of {plan.privacy.noise_multiplier:.4g}"
    )


@app.command("estimate")
def estimate(
    plan: PlanName,
    overrides: Overrides = None,
    models: Models = None,
    probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Measure a few steps on random examples.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")] = False,
) -> None:
    """Say what a plan would cost: numbers that learn, bytes on the wire, memory, time and epsilon. No data is read."""
    import json

    from shared_models import own
    from simulations.estimate import estimate as estimated
    from simulations.scenarios import find_plan

    own.bind(parse_models(models))
    found = estimated(find_plan(plan, overrides or ()), probe=probe)
    if as_json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        print("\n".join(_estimate_lines(found)))


def _estimate_lines(found: Estimate) -> Iterator[str]:
    from simulations.estimate import BATCHES, steps_of

    plan, rounds = found.plan, found.plan.federation.rounds
    frozen = f", {found.frozen:,} frozen, which don't travel" if found.frozen else ""
    if plan.statistics is None:
        yield f"network: {plan.model.name}, {found.trained:,} numbers learn{frozen}"
    else:
        yield f"no network: {found.trained:,} counts"
    yield f"a client and round: {_size(found.down)} down, {_size(found.up)} up"
    if found.clients is not None:
        total = found.clients * rounds
        yield (
            f"the run: {rounds} rounds of {found.clients} clients: {_size(found.down * total)} down, "
            f"{_size(found.up * total)} up" + (", beside what secure sums need" if plan.secure_sum is not None else "")
        )
    of_it = f" ({_size(4 * found.frozen)} of it frozen weights in float32)" if found.frozen else ""
    yield f"memory of a client: {_size(found.least_memory)} at least for weights, gradients and optimiser{of_it}"
    examples = f"{found.batch} example{'s' if found.batch > 1 else ''}"
    if found.step is not None:
        single = f", and {_size(found.per_example)} at most for gradients of single ones" if found.per_example else ""
        yield f"beside that, for {examples} at once: {_size(found.step.kept)} between forward and backward pass{single}"
        yield (
            f"arithmetic of {examples}: {_count(found.step.forward)} operations forward, {_count(found.step.backward)} "
            "backward, as far as products of matrices go"
        )
    if found.probe is not None:
        seconds = found.round_seconds
        assert seconds is not None
        yield (
            f"measured here: {_size(found.probe.memory)} in all, {found.probe.step_seconds:.3g} s a step, "
            f"{seconds:.3g} s a round of {steps_of(plan)} steps"
            + (
                ""
                if plan.training.epochs is None
                else f" (if a client has {BATCHES} batches: nobody's data is looked at)"
            )
        )
        if found.clients is not None:
            yield f"the run: {seconds * found.clients * rounds / 60:.3g} minutes of one processor's training"
    if plan.is_private:
        privacy = plan.privacy
        target = f"{privacy.epsilon:.4g}" if privacy.epsilon is not None else "not computed"
        yield f"privacy: epsilon {target} at delta {privacy.delta:g} at the end, trust {privacy.trust}"
    else:
        yield "privacy: none, plain federated learning protects nobody"


def _size(count: int) -> str:
    return _scaled(count, ("B", "kB", "MB", "GB", "TB"))


def _count(count: int) -> str:
    return _scaled(count, ("", "thousand", "million", "billion", "trillion")).rstrip()


def _scaled(count: int, units: tuple[str, ...]) -> str:
    """A number below a thousand and its unit, the last of them whatever the number."""
    size, place = float(count), 0
    while size >= 999.5 and place < len(units) - 1:
        size, place = size / 1000, place + 1
    return f"{size:.3g} {units[place]}"


@app.command("show")
def show(plan: PlanName, overrides: Overrides = None, models: Models = None) -> None:
    """Write the plan out as it would run: every default, and the noise that its epsilon needs."""
    from shared_models import own
    from shared_models.plan_file import write_plan
    from shared_models.resolve import resolve
    from simulations.scenarios import find_plan

    own.bind(parse_models(models))
    print(write_plan(resolve(find_plan(plan, overrides or ()))), end="")


@app.command("models")
def list_models() -> None:
    """List the networks a plan can name, with their options."""
    from rich.console import Console
    from rich.table import Table

    from shared_models.registry import default_options, names

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model.name", no_wrap=True)
    table.add_column("model.options and their defaults")
    for name in names():
        table.add_row(name, ", ".join(f"{key} = {value}" for key, value in default_options(name).items()))
    Console().print(table)


@app.command("keys")
def keys() -> None:
    """List every key a plan can have, as a table in Markdown."""
    from shared_models.plan_keys import plan_keys_markdown

    print(plan_keys_markdown(), end="")
