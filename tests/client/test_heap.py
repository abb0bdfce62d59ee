"""A process that trains maps its memory once, not in every step: counted in page faults, which no clock disturbs."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

STEPS, BLOCKS, SIZE = 50, 4, 5 << 20

SCRIPT = f"""
import resource, sys
import numpy as np
from client.heap import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else None
def step():
    blocks = [np.ones({SIZE} // 8) for _ in range({BLOCKS})]
    del blocks
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({STEPS}):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str, **environment: str) -> tuple[str, int]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    said = subprocess.run(
        [sys.executable, "-c", SCRIPT, mode], env=env, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    return said[0], int(said[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library isn't glibc")
def test_freed_memory_is_used_again() -> None:
    kept, found = faults("keep")
    assert kept == "True"
    assert found < STEPS * BLOCKS  # a page a block, where each has 1,280


def test_who_has_said_how_to_allocate_is_obeyed() -> None:
    kept, found = faults("keep", MALLOC_MMAP_THRESHOLD_="100000")
    assert kept == "False"
    assert found > STEPS * BLOCKS * 100
