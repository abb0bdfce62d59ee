"""`veil server`: lead a federation from the server's machine, and look after it."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from security.homes import ServerHome
    from shared_models.plan import Plan

app = typer.Typer(
    help="Lead a federation of sites from its server, and look after it.", no_args_is_help=True, suggest_commands=False
)

Home = Annotated[Path, typer.Argument(help="The server's home.", metavar="HOME", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the plan.", metavar="KEY=VALUE")]
Stay = Annotated[bool, typer.Option("--stay", help="Go on serving when all plans are played, for `submit`.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

_SUBMIT_SECONDS = 300.0  # a plan's noise may have to be computed
_STOP_SECONDS = 300.0
_WATCH_SECONDS = 2.0


@app.command("start")
def start(
    home: Home,
    plans: Annotated[
        list[str] | None, typer.Argument(help="Scenario names, or paths of TOML plans.", metavar="[PLAN]...")
    ] = None,
    overrides: Overrides = None,
    stay: Stay = False,
    as_json: AsJson = False,
) -> int:
    """Put plans into the queue, let sites in, and play them one after another."""
    from security.errors import UsageError

    if overrides and not plans:
        raise UsageError("--set changes a plan; give one")
    found = _plans(plans or (), overrides)
    return _serve(home, found, stay=stay, as_json=as_json)


@app.command("resume")
def resume(home: Home, stay: Stay = False, as_json: AsJson = False) -> int:
    """Go on where the server stopped, failed or was killed: with the same sites, from the last checkpoint."""
    return _serve(home, None, stay=stay, as_json=as_json)


@app.command("submit")
def submit(
    home: Home,
    plan: Annotated[str, typer.Argument(help="Scenario name, or path of a TOML plan.")],
    overrides: Overrides = None,
) -> int:
    """Give a running server one more plan."""
    from server.operator import ask
    from shared_models.plan_file import write_plan

    (found,) = _plans((plan,), overrides)
    request = {"ask": "submit", "plan": write_plan(found)}
    answer = ask(_home(home).socket, request, patience=_SUBMIT_SECONDS)
    print(f"queued {answer['name']} as run {answer['run']}; folder: {answer['folder']}")
    return 0


@app.command("status")
def status(
    home: Home,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every 2 s, until Ctrl-C.")] = False,
) -> int:
    """Show the queue, the round that is played, and the sites."""
    from veil.commands.server_status import print_status, show_status

    place = _home(home)
    if not watch:
        found = _status(place)
        if as_json:
            print(json.dumps(found, indent=2))
        else:
            print_status(found, place.path)
        return 0
    if as_json or not sys.stdout.isatty():
        while True:
            found = _status(place)
            if as_json:
                print(json.dumps(found), flush=True)
            else:
                print_status(found, place.path)
            time.sleep(_WATCH_SECONDS)
    from rich.live import Live

    with Live(show_status(_status(place), place.path), auto_refresh=False, screen=True) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            live.update(show_status(_status(place), place.path), refresh=True)


@app.command("stop")
def stop(home: Home) -> int:
    """Have a running server end; `resume` goes on from the last checkpoint."""
    from security.errors import RunError
    from server.operator import ask

    place = _home(home)
    ask(place.socket, {"ask": "stop"})
    deadline = time.monotonic() + _STOP_SECONDS
    while _runs(place):
        if time.monotonic() > deadline:
            raise RunError(f"{place.path}: the server has not ended within {_STOP_SECONDS:.0f} s; look at its log")
        time.sleep(0.1)
    print(f"stopped; go on with: veil server resume {home}")
    return 0


@app.command("revoke")
def revoke(home: Home, site: Annotated[str, typer.Argument(help="Name of the site.")]) -> int:
    """Keep a site out from now on, and end its connection at once."""
    from security.errors import UsageError, did_you_mean
    from security.revocation import revoke_here
    from security.roster import read_roster
    from server.operator import NoServerError, ask

    place = _home(home)
    known = read_roster(place.roster).sites
    if site not in known:
        hint = did_you_mean(site, known)
        raise UsageError(f"{site}: no such site in {place.roster}; {hint}known: {', '.join(sorted(known))}")
    revoke_here(place, site)
    try:
        answer = ask(place.socket, {"ask": "revoke", "site": site})
    except NoServerError:
        found = "no server runs now, the next one won't let it in"
    else:
        found = "its connection was closed" if answer["connected"] else "it was not connected"
    print(f"{site} is kept out of this server; {found}")
    print(f"for good, the authority revokes its certificate: veil provision revoke {site} --home CA")
    return 0


@app.command("drop")
def drop(home: Home, run: Annotated[str, typer.Argument(help="The run, as status calls it.")]) -> int:
    """Take a run out of the queue of a server that is down. Its folder stays; what sites have spent is spent."""
    from server import service

    service.drop(_home(home), run)
    print(f"dropped {run}; its folder is still there")
    return 0


def _serve(path: Path, plans: list[Plan] | None, *, stay: bool, as_json: bool) -> int:
    """Start with plans, or resume without."""
    from security.errors import RunError
    from server import service
    from server.settings import read_settings
    from veil.commands.asking import passphrase_for
    from veil.commands.server_console import ServerConsole
    from veil.own_data import own_test_data

    home = _home(path)
    settings = read_settings(home.settings)
    console = ServerConsole(path, federation=settings.federation, as_json=as_json)
    given: dict[str, Any] = {
        "load_test": own_test_data(settings),
        "watcher": console,
        "signals": _signals,
        "stay": stay,
        "passphrase": passphrase_for(home.tls_key),
    }
    try:
        if plans is not None:
            return service.start(home, plans, **given)
        code = service.resume(home, **given)
    except RunError as error:
        raise service.in_a_servers_words(error, home) from error
    finally:
        console.close()
    if code is None:
        print(f"{path}: nothing to go on with; begin with: veil server start {path} PLAN", file=sys.stderr)
        return 0
    return code


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the server as `veil server stop` does; a second Ctrl-C ends the process."""
    seen: list[int] = []

    def handle(number: int, _: object) -> None:
        seen.append(number)
        if seen.count(signal.SIGINT) > 1:
            raise KeyboardInterrupt
        # Not here: a handler interrupts whatever holds the locks that this needs.
        threading.Thread(target=stop, daemon=True).start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _plans(names: list[str] | tuple[str, ...], overrides: list[str] | None) -> list[Plan]:
    from simulations.scenarios import find_plan

    return [find_plan(name, overrides or ()) for name in names]


def _home(path: Path) -> ServerHome:
    from security.errors import UsageError
    from security.homes import ServerHome

    home = ServerHome(path)
    if not home.settings.is_file():
        raise UsageError(f"{path}: is no server's home (server.toml is missing); make one with: veil provision server")
    return home


def _status(home: ServerHome) -> dict[str, Any]:
    from security.revocation import revoked_here
    from security.roster import read_roster
    from server.operator import NoServerError, ask

    try:
        found: dict[str, Any] = ask(home.socket, {"ask": "status"})["status"]
    except NoServerError:
        from server.status import down

        return down(home, tuple(read_roster(home.roster).sites), revoked_here(home))
    return found


def _runs(home: ServerHome) -> bool:
    from security.errors import UsageError
    from security.home_lock import holding

    try:
        with holding(home.lock, "a running server"):
            return False
    except UsageError:
        return True
