"""What a private step costs, beside a plain one and beside other ways to make it, on the CPU.

    python -m simulations.benchmarks.dp_step
    python -m simulations.benchmarks.dp_step --models cnn lstm --runs 30 --threads 1 2 --json steps.json

Every engine makes the same whole step in one process, one after the other, many times over: zero the gradients,
forward, backward, clip, noise, update. Quoted is the least CPU time of each and its ratio to the plain step's: on a
shared machine the least of interleaved runs is what others disturb least. Memory is measured in a process of its own
for each: how far it grows beyond what it holds when network and data are there.

`veil` is `privacy.dpsgd` with noise from a keystream on a grid; how much of it is noise stands beside it. `hooks` and
`ghost` are Opacus with its own noise (torch's generator, floats). `vmap` is torch.func with the same clipping and
torch's noise.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from torch.utils.data import DataLoader, TensorDataset

from privacy.dpsgd.engine import private_gradient_step, private_hooks, values_left_as_factors
from privacy.dpsgd.optimizer import PrivateOptimizer
from privacy.noise import SecretNoise
from simulations.benchmarks.dp_cases import CASES, CLASSES, Case

ENGINES = ("plain", "veil", "hooks", "ghost", "vmap")
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
    elif engine == "veil":
        optimizer = PrivateOptimizer(
            sgd,
            noise_multiplier=SIGMA,
            clipping_norm=CLIP,
            expected_batch_size=case.batch,
            noise=SecretNoise(),
            values_left_as_factors=values_left_as_factors(model),
        )
        with private_hooks(model):
            yield lambda: private_gradient_step(model, optimizer, loss, [(x, y)])
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


def noise_step(case: Case) -> Step:
    """The noise of a step alone."""
    size = sum(p.numel() for p in case.make("veil").parameters() if p.requires_grad)
    source = SecretNoise()

    def draw() -> None:
        source.grid_normal((size,), SIGMA * 2.0**20)

    return draw


# --- measuring ----------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """What one engine's step on one network costs.

    Attributes:
        model: name of the case.
        engine: name of the engine; "noise" for that of Veil's step alone.
        threads: of torch.
        cpu: least CPU time, in milliseconds; None if the engine can't train the network.
        wall: least elapsed time, in milliseconds.
        memory: growth of the process beyond network and data, in MB; None where it wasn't measured.
        error: why the engine can't.
    """

    model: str
    engine: str
    threads: int
    cpu: float | None = None
    wall: float | None = None
    memory: float | None = None
    error: str | None = None


def measure(name: str, *, runs: int, threads: int, engines: Sequence[str] = ENGINES) -> list[Row]:
    """Steps of all engines, interleaved."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rows: list[Row] = []
    steps: list[tuple[Row, Step]] = []
    opened = []
    try:
        for engine in engines:
            row = Row(name, engine, threads)
            rows.append(row)
            context = step_of(engine, CASES[name])
            try:
                step = context.__enter__()
                opened.append(context)
                step()
            except Exception as error:
                row.error = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                continue
            steps.append((row, step))
        if "veil" in engines:
            steps.append((Row(name, "noise", threads), noise_step(CASES[name])))
            rows.append(steps[-1][0])
        for _ in range(runs):
            for row, step in steps:
                cpu, wall = time.process_time(), time.perf_counter()
                step()
                cpu, wall = 1e3 * (time.process_time() - cpu), 1e3 * (time.perf_counter() - wall)
                row.cpu = min(row.cpu or math.inf, cpu)
                row.wall = min(row.wall or math.inf, wall)
    finally:
        for context in reversed(opened):
            context.__exit__(None, None, None)
        torch.set_num_threads(before)
    return rows


def growth(name: str, engine: str) -> float:
    """How far this process grows over five steps, in MB: to be asked once, in a process of its own."""
    with step_of(engine, CASES[name]) as step:
        held = _kilobytes("VmRSS")
        for _ in range(5):
            step()
        # Not getrusage: its peak is that of the process that started this one, too.
        return (_kilobytes("VmHWM") - held) / 1024


def _kilobytes(key: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith(f"{key}:"))


def _measured_apart(row: Row) -> float | None:
    done = subprocess.run(  # noqa: S603 - this module itself
        [sys.executable, "-W", "ignore", "-m", "simulations.benchmarks.dp_step", "--grow", row.model, row.engine],
        capture_output=True,
        text=True,
        check=False,
    )
    return float(done.stdout) if done.returncode == 0 else None


def tables(rows: Sequence[Row]) -> Iterator[Table]:
    """One table for each number of threads."""
    for threads in sorted({row.threads for row in rows}):
        table = Table(title=f"A private step, {threads} thread{'s' * (threads > 1)}: CPU time over a plain step's")
        table.add_column("network")
        table.add_column("plain", justify="right")
        for engine in (*ENGINES[1:], "noise"):
            table.add_column(engine, justify="right")
        table.add_column("memory: veil / hooks", justify="right")
        for name in dict.fromkeys(row.model for row in rows if row.threads == threads):
            found = {row.engine: row for row in rows if row.threads == threads and row.model == name}
            plain = found["plain"]
            table.add_row(
                name,
                f"{plain.cpu:.1f} ms" if plain.cpu else "-",
                *(_ratio(found.get(engine), plain, "cpu") for engine in (*ENGINES[1:], "noise")),
                " / ".join(_ratio(found.get(engine), plain, "memory") for engine in ("veil", "hooks")),
            )
        yield table


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
    parser.add_argument("--no-memory", action="store_true", help="leave out memory, which takes a process each")
    parser.add_argument("--json", type=Path, help="where to write all figures")
    parser.add_argument("--grow", nargs=2, metavar=("MODEL", "ENGINE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    if given.grow:
        torch.set_num_threads(1)
        print(growth(*given.grow))
        return
    console, rows = Console(), []
    for threads in given.threads:
        for name in given.models:
            with console.status(f"{name}, {threads} threads"):
                rows += measure(name, runs=given.runs, threads=threads)
    if not given.no_memory:
        for row in rows:
            if row.threads == given.threads[0] and row.error is None and row.engine != "noise":
                with console.status(f"memory of {row.model}, {row.engine}"):
                    row.memory = _measured_apart(row)
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
