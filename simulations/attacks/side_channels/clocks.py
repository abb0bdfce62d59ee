"""How long two things take, measured in turns, so that what else the machine does falls on both alike.

What is measured is the processor's time of this thread: what somebody would see on a machine that does nothing else. On
a busy one they see less.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from simulations.attacks.side_channels.distinguish import Floats

Work = Callable[[], object]

_UNCOUNTED = 5


@contextmanager
def quietly() -> Iterator[None]:
    """Without Python's collector and with one of torch's threads: the observer's best case."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def seconds_of(work: Work) -> float:
    """How long it takes, once."""
    begun = time.thread_time()
    work()
    return time.thread_time() - begun


def in_turns(one: Work, other: Work, *, trials: int, seed: int = 0) -> tuple[Floats, Floats]:
    """Seconds of either, so many times, in an order drawn for each pair.

    Args:
        one, other: to be called; each call is a trial.
        trials: of each.
        seed: of the order.
    """
    first = np.random.default_rng(seed).integers(2, size=trials)
    found = np.empty((2, trials))
    with quietly():
        for _ in range(_UNCOUNTED):
            one()
            other()
        for trial in range(trials):
            for which in (first[trial], 1 - first[trial]):
                found[which, trial] = seconds_of((one, other)[which])
    return found[0], found[1]
