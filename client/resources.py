"""How much of the owner's machine the client takes: others go first, and memory has an end.

Threads are the plan's, since results depend on them; a plan that asks for more than the owner gives is refused when it
is offered (`client/offers.py`).
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from client.site_settings import ResourceSettings
from security.errors import UsageError

LEAST_MEMORY_MB: Final = 600  # of the client itself, with a small network


def limit_libraries() -> None:
    """Let libraries start no threads of their own; before any of them is imported.

    torch's are set for each task (`client.trainer.torch_threads`).
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
        os.environ.setdefault(name, "1")


def apply_limits(resources: ResourceSettings) -> None:
    """Give way to others, and take no more memory than the owner gives; before any other thread begins.

    The limit is on what the process has allocated (Linux: RLIMIT_DATA, without what it maps from files). What goes
    beyond fails where it is asked for: the round ends with the code of a client that failed, the client goes on.

    Raises:
        UsageError: less memory than any client needs, or a system that can't limit it.
    """
    if resources.niceness > os.getpriority(os.PRIO_PROCESS, 0):
        os.setpriority(os.PRIO_PROCESS, 0, resources.niceness)
    given = resources.memory_mb
    if not given:
        return
    if sys.platform != "linux":
        raise UsageError(
            f"site.toml: resources.memory_mb = {given}: this system can't limit a process; set it to 0, and limit the "
            "client by other means"
        )
    if given < LEAST_MEMORY_MB:
        raise UsageError(
            f"site.toml: resources.memory_mb = {given}: less than any client needs; allowed: 0 for no limit, or at "
            f"least {LEAST_MEMORY_MB}"
        )
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = given << 20
    if hard == resource.RLIM_INFINITY or limit <= hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def peak_memory() -> int:
    """Bytes of memory that this process has held at most."""
    with suppress(OSError):  # Linux: what `getrusage` says is no less than what the parent held when it began this
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found if sys.platform == "darwin" else found << 10
