"""Ending asyncio tasks for certain."""

import asyncio

import pytest

from client.cancelling import cancelled

_PATIENCE = 20.0


async def _for_ever(wake: asyncio.Event) -> None:
    while True:
        await asyncio.wait_for(wake.wait(), 600.0)
        wake.clear()


@pytest.mark.parametrize("ticks", range(5))
def test_a_cancellation_that_meets_a_wake_up_still_ends_the_task(ticks: int) -> None:
    async def scene() -> asyncio.Task[None]:
        wake = asyncio.Event()
        task = asyncio.create_task(_for_ever(wake))
        for _ in range(3):
            await asyncio.sleep(0)  # it waits now
        wake.set()
        for _ in range(ticks):  # how far the wake-up has come when the cancellation meets it
            await asyncio.sleep(0)
        await asyncio.wait_for(cancelled(task, again_after=0.05), _PATIENCE)
        return task

    assert asyncio.run(scene()).cancelled()


def test_a_task_that_loses_its_first_cancellations_is_cancelled_again() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    async def scene() -> None:
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        await asyncio.wait_for(cancelled(task, again_after=0.05), _PATIENCE)

    asyncio.run(scene())
    assert lost == 2


def test_what_is_over_and_what_fails_meanwhile_raises_nothing_here() -> None:
    async def done() -> int:
        return 3

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise OSError

    async def scene() -> tuple[int, BaseException | None]:
        over, fails = asyncio.create_task(done()), asyncio.create_task(failing())
        await asyncio.sleep(0)
        await cancelled(over, fails)
        return over.result(), fails.exception()

    result, error = asyncio.run(scene())
    assert result == 3
    assert isinstance(error, OSError)
