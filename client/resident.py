"""A site's client as a process: its home is locked, opened and closed, signals are heeded, limits are kept."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Final

from client.agent import Agent, Place
from client.dialing import GrpcDialer, forget_proxies
from client.notes import Notes
from client.outbox import Outbox
from client.resources import apply_limits, peak_memory
from client.running import Runner
from security.errors import VeilError
from security.frames import LARGEST_MESSAGE
from security.home_lock import holding
from security.homes import SiteHome

if TYPE_CHECKING:
    from client.site import DeployedSite

_SETTINGS_SECONDS: Final = 60.0  # before settings that can't be read are looked at again


def work_at(
    home: SiteHome,
    passphrase: str | None,
    *,
    until_done: bool = False,
    verbose: bool = False,
    say: Callable[[str], None] = print,
) -> int:
    """Work as the site whose home this is, until a signal comes or the server says something final.

    Args:
        home: of the site.
        passphrase: of its keys; None if they have none.
        until_done: end when the server says that all plans are played.
        verbose: say more.
        say: prints a line.

    Returns:
        The exit code.

    Raises:
        UsageError: the home won't do, or a client works here already.
        RunError: the ledger or the outbox can't be relied on.
    """
    from client.site import DeployedSite, register_site
    from client.site_settings import read_settings

    _silence_libraries()
    forget_proxies()
    home.check_here()
    settings = read_settings(home.settings)
    settings.server_address()
    with holding(home.lock, "a running client"), ExitStack() as stack:
        apply_limits(settings.resources)
        site = DeployedSite.open(home, settings, passphrase)
        stack.callback(site.close)
        register_site(site)
        outbox = Outbox.open(home.outbox)
        stack.callback(outbox.close)
        notes = Notes(status=home.status, log=home.log, server=settings.server.address, say=say, verbose=verbose)
        stack.callback(notes.close)
        notes.note("started", f"site {site.name}: calling {settings.server.address}", process=os.getpid())
        code, busy = _run(lambda: make_agent(home, site, outbox, notes, passphrase, until_done=until_done), notes)
        notes.note("ended", f"ended; peak memory {peak_memory() / 1e6:.0f} MB", code=code, peak=peak_memory())
        if busy:  # nothing but the end of the process ends the app; what it was doing is not lost
            notes.close()
            _end(code)
    return code


def make_agent(
    home: SiteHome,
    site: DeployedSite,
    outbox: Outbox,
    notes: Notes,
    passphrase: str | None,
    *,
    until_done: bool,
    runner: Runner | None = None,
) -> Agent:
    """The agent of a site that is open; to be called inside of the event loop that it will run in."""
    from client.conditions import Conditions
    from security.credentials import channel_credentials, channel_options
    from security.errors import UsageError
    from security.tls_probe import explain

    server = site.settings.server
    federation = home.peer().federation

    def schedule() -> tuple[str | None, float]:
        try:
            conditions = Conditions(site.settings.schedule)
        except UsageError as error:
            return str(error), _SETTINGS_SECONDS
        return conditions.may_work(), conditions.next_change()

    return Agent(
        Place(
            site=site.name,
            federation=federation,
            server=server.address,
            home=home.path,
            software=_software(),
            largest=min(LARGEST_MESSAGE, site.settings.resources.largest_message_mb << 20),
        ),
        dial=GrpcDialer(
            server.address,
            lambda: channel_credentials(home, passphrase),
            options=channel_options(federation),
            proxy=server.proxy,
        ),
        explain=lambda: explain(home, server.address, passphrase, proxy=server.proxy),
        owner=site,
        schedule=schedule,
        runner=runner or Runner(site.name),
        outbox=outbox,
        notes=notes,
        until_done=until_done,
        every=site.settings.release.every_seconds,
    )


def _run(make: Callable[[], Agent], notes: Notes) -> tuple[int, VeilError | None]:
    """Run an agent in an event loop of its own; its exit code, and the error that ended it.

    Should the app still be at work, the process ends here: nothing else would end the app, and nothing is lost.
    """
    signals: list[int] = []

    def heed(agent: Agent, number: int) -> None:
        signals.append(number)
        if len(signals) > 1:
            notes.note("stopped at once", "stopped at once; what was in work is begun again next time")
            notes.close()
            _end(128 + number)
        how = "the task in work is finished first; once more stops at once" if agent.is_working else "hanging up"
        notes.note("stopping", f"stopping: {how}")
        agent.stop()

    async def live() -> tuple[int, VeilError | None]:
        agent, code, error = make(), 1, None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, heed, agent, number)
        try:
            code = await agent.run()
        except VeilError as found:
            error = found
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
        if agent.is_working:
            notes.note("ended at work", None if error is None else f"error: {error}", code=code)
            notes.close()
            _end(code)
        return code, error

    return asyncio.run(live())


def _end(code: int) -> None:
    """End the process now, whatever its threads do: all that matters is on the disk."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _silence_libraries() -> None:
    """gRPC would print what strangers say."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    logging.getLogger("grpc").addHandler(logging.NullHandler())


def _software() -> str:
    try:
        return version("veil-fl")
    except PackageNotFoundError:
        return "unknown"
