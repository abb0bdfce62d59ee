"""What a private step costs, beside a plain one and beside other ways to make it, on the CPU.

    python -m simulations.benchmarks.dp_step
    python -m simulations.benchmarks.dp_step --models cnn lstm --runs 30 --threads 1 2 --json steps.json

Every engine makes the same whole step in one process, one after the other, many times over: zero the gradients,
forward, backward, clip, noise, update. Quoted is the least CPU time of each and its ratio to the plain step's: on a
shared machine the least of interleaved runs is what others disturb least. Memory is the most that tensors take at once
in a step, beyond network and data.

`veil` is `privacy.dpsgd` with noise from a keystream on a grid, `bf16` the same with layers in bfloat16. `hooks` and
`ghost` are Opacus with its own noise (torch's generator, floats). `vmap` is torch.func with the same clipping and
torch's noise. A second table says what bounds `veil`: the passes through the network without any parameter's gradient,
the gradients of single examples, noise, and what is left: norms, rounding, sums, the update.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from opacus import PrivacyEngine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.optim import SGD
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from privacy.dpsgd.engine import private_gradient_step, private_hooks, values_left_as_factors
from privacy.dpsgd.layers.tapped import Tapped
from privacy.dpsgd.optimizer import PrivateOptimizer, free_per_example
from privacy.dpsgd.precision import Precision
from privacy.noise import SecretNoise
from simulations.benchmarks.dp_cases import CASES, CLASSES, Case

ENGINES = ("plain", "veil", "bf16", "hooks", "ghost", "vmap")
PARTS = ("passes", "gradients", "noise")
"""Of a step by `veil`, by themselves; `gradients` comes with the passes that it needs."""

CLIP, SIGMA = 1.0, 1.0


# --- steps --------------------------------------------------------------------------------------------------------

Step = Callable[[], None]


@contextmanager
def step_of(engine: str, case: Case) -> Iterator[Step]:
    """A whole step of an engine on one batch, to be called again and again.

    Raises:
        Exception: whatever the engine raises that can't train this network.
    """
    torch.manual_seed(1)
    model = case.make(engine).train()
    x, y = case.inputs(case.batch), torch.randint(CLASSES, (case.batch,))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sgd, loss = SGD(trained, lr=1e-3), nn.CrossEntropyLoss(reduction="sum")
    if engine == "plain":
        mean = nn.CrossEntropyLoss()

        def plain() -> None:
            sgd.zero_grad()
            torch.autograd.backward(mean(model(x), y))
            sgd.step()

        yield plain
    elif engine in ("veil", "bf16"):
        optimizer = PrivateOptimizer(
            sgd,
            noise_multiplier=SIGMA,
            clipping_norm=CLIP,
            expected_batch_size=case.batch,
            noise=SecretNoise(),
            values_left_as_factors=values_left_as_factors(model),
        )
        precision: Precision = "bfloat16" if engine == "bf16" else "float32"
        with private_hooks(model):
            yield lambda: private_gradient_step(model, optimizer, loss, [(x, y)], precision=precision)
    elif engine == "vmap":
        yield _vmap_step(model, trained, sgd, x, y)
    else:
        private = PrivacyEngine().make_private(
            module=model,
            optimizer=sgd,
            criterion=nn.CrossEntropyLoss(),
            data_loader=DataLoader(TensorDataset(x, y), batch_size=case.batch),
            noise_multiplier=SIGMA,
            max_grad_norm=CLIP,
            poisson_sampling=False,
            grad_sample_mode=engine,
        )
        wrapped, dp = private[0], private[1]
        criterion = private[2] if engine == "ghost" else nn.CrossEntropyLoss()

        def opacus() -> None:
            dp.zero_grad()
            criterion(wrapped(x), y).backward()
            dp.step()

        yield opacus


def _vmap_step(model: nn.Module, trained: list[nn.Parameter], sgd: SGD, x: Tensor, y: Tensor) -> Step:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]

    def loss_of_one(values: tuple[Tensor, ...], one: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, dict(zip(names, values, strict=True)), (one[None],))
        return functional.cross_entropy(logits, label[None])

    gradients_of_each = vmap(grad(loss_of_one), in_dims=(None, 0, 0), randomness="different")

    def step() -> None:
        rows = gradients_of_each(tuple(parameter.detach() for parameter in trained), x, y)
        norms = torch.stack([part.flatten(1).norm(dim=1) for part in rows]).norm(dim=0)
        factors = (CLIP / norms).clamp(max=1)
        for parameter, part in zip(trained, rows, strict=True):
            parameter.grad = (torch.einsum("n,n...->...", factors, part) + SIGMA * torch.randn_like(parameter)) / len(y)
        sgd.step()

    return step


@contextmanager
def part_of(part: str, case: Case) -> Iterator[Step]:
    """A part of a step by `veil`, on one batch."""
    torch.manual_seed(1)
    model = case.make("veil").train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if part == "noise":
        source, size = SecretNoise(), sum(parameter.numel() for parameter in trained)
        yield lambda: _ignored(source.grid_normal((size,), SIGMA * 2.0**20))
        return
    x, y = case.inputs(case.batch), torch.randint(CLASSES, (case.batch,))
    loss = nn.CrossEntropyLoss(reduction="sum")
    with private_hooks(model) if part == "gradients" else _without_parameters(model):

        def step() -> None:
            torch.autograd.backward(loss(model(x), y))
            free_per_example(trained)

        yield step


def _ignored(_: object) -> None:
    pass


@contextmanager
def _without_parameters(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient, and the backward pass goes down to the first layer that has one to train."""
    first = next(m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False)))
    model.requires_grad_(False)
    if isinstance(first, Tapped):
        first.tap = lambda gates, _: gates.requires_grad_()
    else:
        first.register_forward_hook(lambda _, __, made: made.requires_grad_())
    yield


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What one engine's step on one network costs.

    Attributes:
        model: name of the case.
        engine: name of the engine, or of a part of Veil's step.
        threads: of torch.
        cpu: least CPU time, in milliseconds; None if the engine can't train the network.
        wall: least elapsed time, in milliseconds.
        memory: of tensors at once, in MB; of whole steps.
        error: why the engine can't.
    """

    model: str
    engine: str
    threads: int
    cpu: float | None = None
    wall: float | None = None
    memory: float | None = None
    error: str | None = None


def measure(name: str, *, runs: int, threads: int, engines: Sequence[str] = (*ENGINES, *PARTS)) -> list[Row]:
    """Steps of all engines and parts, interleaved."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    steps: list[tuple[Row, Step]] = []
    with ExitStack() as opened:
        opened.callback(torch.set_num_threads, before)
        for engine in engines:
            row = Row(name, engine, threads)
            rows.append(row)
            try:
                step = opened.enter_context((part_of if engine in PARTS else step_of)(engine, CASES[name]))
                step()
                if engine in ENGINES:
                    row.memory = peak_memory(step)
            except Exception as error:
                row.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            steps.append((row, step))
        for _ in range(runs):
            for row, step in steps:
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                cpu, wall = 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)
                row.cpu = min(row.cpu or math.inf, cpu)
                row.wall = min(row.wall or math.inf, wall)
    return rows


def peak_memory(step: Step) -> float:
    """The most that tensors made in a step take at once, in MB."""
    step()  # what is made once isn't counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step()
    events = found.profiler.kineto_results.events()
    held = most = 0
    for event in sorted((one for one in events if one.name() == "[memory]"), key=lambda one: one.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 1e6


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """For each number of threads the time of each engine and of the parts of Veil's; and memory."""
    for threads in sorted({row.threads for row in rows}):
        some = [row for row in rows if row.threads == threads]
        title = f"A private step, {threads} thread{'s' * (threads > 1)}: CPU time over a plain step's"
        yield _table(title, some, ENGINES[1:], "cpu", "ms")
    some = [row for row in rows if row.threads == min(row.threads for row in rows)]
    yield _table("What Veil's step is made of: CPU time over a plain step's", some, (*PARTS, "veil"), "cpu", "ms")
    yield _table("Memory of tensors at once, over a plain step's", some, ENGINES[1:], "memory", "MB")


def _table(title: str, rows: Sequence[Row], engines: Sequence[str], what: str, unit: str) -> Table:
    table = Table(title=title)
    table.add_column("network")
    for engine in ("plain", *engines):
        table.add_column(engine, justify="right")
    for name in dict.fromkeys(row.model for row in rows):
        found = {row.engine: row for row in rows if row.model == name}
        plain = getattr(found["plain"], what)
        ratios = (_ratio(found.get(engine), found["plain"], what) for engine in engines)
        table.add_row(name, f"{plain:.1f} {unit}" if plain else "-", *ratios)
    return table


def _ratio(row: Row | None, plain: Row, what: str) -> str:
    value, unit = (getattr(one, what) if one is not None else None for one in (row, plain))
    return f"{value / unit:.2f}" if value is not None and unit else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m simulations.benchmarks.dp_step", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--runs", type=int, default=20, help="of each engine")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="where to write all figures")
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler writes lines of its own
    console, rows = Console(), []
    for threads in given.threads:
        for name in given.models:
            with console.status(f"{name}, {threads} threads"):
                rows += measure(name, runs=given.runs, threads=threads)
    for table in tables(rows):
        console.print(table)
    for row in rows:
        if row.error and row.threads == given.threads[0]:
            console.print(f"{row.model}, {row.engine}: {row.error}", style="dim", markup=False)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
