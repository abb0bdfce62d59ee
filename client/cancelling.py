"""Ending asyncio tasks for certain."""

import asyncio
from typing import Any


async def cancelled(*tasks: asyncio.Task[Any], again_after: float = 6.0) -> None:
    """Cancel tasks until they are over.

    Before Python 3.12 `asyncio.wait_for` loses a cancellation that meets the wake-up it waited for: the task goes on,
    and whoever cancelled it once and then awaits it hangs for ever.

    Args:
        tasks: may be over already; what they raise at their end is not raised here.
        again_after: seconds until a task that goes on is cancelled again; longer than a proper end takes, which a
            second cancellation would cut off.
    """
    while running := {task for task in tasks if not task.done()}:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=again_after)
    await asyncio.gather(*tasks, return_exceptions=True)
