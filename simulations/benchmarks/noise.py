"""Nanoseconds for one draw of noise, beside torch's generator, which no release may use.

python -m simulations.benchmarks.noise
"""

from collections.abc import Callable
from statistics import median
from time import process_time

import torch

from privacy.noise import SecretNoise

_DRAWS = 1_000_000
_RUNS = 15
_YARDSTICK = "torch.randn, float32"


def measure(draws: int = _DRAWS, runs: int = _RUNS) -> dict[str, float]:
    """Median processor time of one draw in nanoseconds, by one thread; runs take turns, so that a busy spell hits all.

    Args:
        draws: drawn at once.
        runs: of each kind.
    """
    source = SecretNoise()
    kinds: dict[str, Callable[[], object]] = {
        _YARDSTICK: lambda: torch.randn(draws),
        "uniform": lambda: source.uniform(draws),
        "rounded Gaussian, scale 4": lambda: source.grid_normal((draws,), 4.0),
        "rounded Gaussian, scale 2^20 (the private step)": lambda: source.grid_normal((draws,), 2.0**20),
        "rounded Gaussian, scale 2^30": lambda: source.grid_normal((draws,), 2.0**30),
        "discrete Gaussian, sigma 4": lambda: source.discrete_gaussian((draws,), 4.0),
        "discrete Gaussian, sigma 1000": lambda: source.discrete_gaussian((draws,), 1000.0),
        "discrete Gaussian, sigma 2^16": lambda: source.discrete_gaussian((draws,), 2.0**16),
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for draw in kinds.values():  # tables are made, memory is got
            draw()
        for _ in range(runs):
            for kind, draw in kinds.items():
                start = process_time()
                draw()
                times[kind].append(process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {kind: 1e9 * median(values) / draws for kind, values in times.items()}


def main() -> None:
    """Print the table."""
    found = measure()
    print(f"{'ns a draw':>10} {'ratio':>6}  median of {_RUNS} interleaved runs of {_DRAWS:,} draws, one thread")
    for kind, nanoseconds in found.items():
        print(f"{nanoseconds:>10.1f} {nanoseconds / found[_YARDSTICK]:>6.1f}  {kind}")


if __name__ == "__main__":
    main()
