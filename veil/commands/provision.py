"""`veil provision`: found a federation, approve its sites, make its server's home, revoke."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Found a federation and say who belongs to it (for its authority).",
    no_args_is_help=True,
    suggest_commands=False,
)

Home = Annotated[Path, typer.Option("--home", help="The authority's home.", metavar="CA")]
FederationFile = Annotated[
    Path, typer.Argument(help="Name, server and sites of the federation.", metavar="FEDERATION.toml")
]
Passphrase = Annotated[
    bool, typer.Option("--passphrase", help="Keys under a passphrase: of VEIL_PASSPHRASE_FILE, or asked for.")
]


@app.command("init")
def init(federation_file: FederationFile, home: Home, passphrase: Passphrase = False) -> None:
    """Make the authority's key and certificate in a new folder."""
    from security.homes import AuthorityHome
    from security.provision import found
    from veil.commands.asking import new_passphrase

    place = AuthorityHome(home)
    federation = found(place, federation_file, passphrase=new_passphrase() if passphrase else None, now=time.time())
    print(f"{home}: the authority of {federation.name}")
    _print_authority(place)
    print("whoever has its key decides who belongs to the federation: keep the folder safe, and off the server")


@app.command("server")
def server(
    home: Home,
    out: Annotated[Path, typer.Option("--out", help="The server's home.", metavar="SERVERHOME")],
    renew: Annotated[bool, typer.Option("--renew", help="A new key and certificate for a home that is there.")] = False,
    passphrase: Passphrase = False,
) -> None:
    """Make the server's home: key, certificate, roster, settings."""
    from security.homes import AuthorityHome, ServerHome
    from security.provision import at_work
    from veil.commands.asking import new_passphrase, passphrase_for

    authority, place = AuthorityHome(home), ServerHome(out)
    own = passphrase_for(place.tls_key) if renew else None
    own = new_passphrase() if passphrase else own
    with at_work(authority, passphrase_for(authority.authority_key)) as office:
        make = office.renew_server if renew else office.equip_server
        peer = make(place, passphrase=own, now=time.time())
        sites = len(office.roster().sites)
    print(f"{out}: the server of {peer.federation}, certificate until {_day(peer.not_after)}, {counted(sites)}")
    if renew:
        print("put keys/tls.key and certificates/server.pem into the server's home; it need not be stopped")
    else:
        print(f"next: look at {place.settings}, put the folder on the server's machine, and see README.md there")


@app.command("approve")
def approve(
    request_file: Annotated[Path, typer.Argument(help="What the site sent.", metavar="NAME.request")],
    home: Home,
    out: Annotated[Path | None, typer.Option("--out", help="[default: NAME.grant]", metavar="FILE")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="The fingerprint was compared already.")] = False,
) -> None:
    """Approve a site's request: issue its certificate."""
    from security.errors import RunError, UsageError
    from security.homes import AuthorityHome, read_public
    from security.identity import fingerprint
    from security.private_files import replace_file
    from security.provision import at_work
    from veil.commands.asking import agreed, passphrase_for

    authority = AuthorityHome(home)
    data = read_public(request_file, 1 << 20)
    with at_work(authority, passphrase_for(authority.authority_key)) as office:
        try:
            asked, renews = office.consider(data)
        except ValueError as error:
            raise UsageError(f"{request_file}: {error}; ask the site to send it again") from None
        target = Path(f"{asked.site}.grant") if out is None else out
        print(f"site        {asked.site}  ({'renewal' if renews else 'new'})")
        print(f"federation  {asked.federation}")
        print(f"identity    {fingerprint(asked.identity)}")
        if not yes and not agreed(
            "Does the site itself say this identity (by telephone, or face to face)?", instead="--yes"
        ):
            raise RunError(f"site '{asked.site}' was not approved")
        replace_file(target, office.approve(data, now=time.time()))
        roster = office.roster()
    print(f"{target}: for the site; it may travel in the open")
    if not renews:
        print(f"the roster has changed: {counted(len(roster.sites))}, digest {roster.digest}")
        print("next: `veil provision roster`, for the server and for every other site to approve")


@app.command("roster")
def roster(
    home: Home,
    out: Annotated[Path, typer.Option("--out", help="The file to write.", metavar="FILE")] = Path("roster.json"),
) -> None:
    """Write the federation's sites: for the server, and for sites to approve."""
    from security.homes import AuthorityHome
    from security.provision import at_work
    from security.roster import write_roster
    from veil.commands.asking import passphrase_for

    authority = AuthorityHome(home)
    with at_work(authority, passphrase_for(authority.authority_key)) as office:
        found = office.roster()
    write_roster(out, found)
    print(f"{out}: {counted(len(found.sites))}, digest {found.digest}")


@app.command("revoke")
def revoke(site: Annotated[str, typer.Argument(help="Its name.", metavar="SITE")], home: Home) -> None:
    """Revoke a site's certificates: the server lets it in no more, once it has the new list."""
    from security.homes import AuthorityHome
    from security.provision import at_work
    from veil.commands.asking import passphrase_for

    authority = AuthorityHome(home)
    with at_work(authority, passphrase_for(authority.authority_key)) as office:
        count = office.revoke(site, now=time.time())
        left = office.roster()
    print(f"site {site}: {count} certificate{'' if count == 1 else 's'} revoked; {counted(len(left.sites))} left")
    print(f"next: copy {authority.revoked} into the server's home, and the new roster (`veil provision roster`)")
    print(f"to keep it out this very moment: `veil server revoke SERVERHOME {site}`")


@app.command("show")
def show(home: Home) -> None:
    """Say who the authority is, and which sites have certificates."""
    from rich.console import Console
    from rich.table import Table

    from security.certificates import expires_in
    from security.homes import AuthorityHome
    from security.identity import fingerprint
    from security.provision import at_work
    from veil.commands.asking import passphrase_for

    authority = AuthorityHome(home)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("name", "role", "until", "state", "identity"):
        table.add_column(title, no_wrap=True)
    with at_work(authority, passphrase_for(authority.authority_key)) as office:
        revoked, now = office.revoked(), time.time()
        newest = {(peer.role, peer.name): peer for peer in office.issued()}
        for (role, name), peer in sorted(newest.items()):
            over = "expired" if expires_in(peer, now) <= 0 else "valid"
            state = "revoked" if peer.serial in revoked else over
            identity = "" if peer.identity is None else fingerprint(peer.identity)[:19] + " ..."
            table.add_row(name, role, _day(peer.not_after), state, identity)
        print(f"{office.federation.name}, server at {office.federation.address}")
    _print_authority(authority)
    Console(highlight=False).print(table)


@app.command("kits")
def kits(
    federation_file: FederationFile,
    out: Annotated[Path, typer.Option("--out", help="Where to make the folders.", metavar="DIR")],
) -> None:
    """For pilots: make authority, server and all sites at once, ready to start."""
    from security.kits import make_kits

    made = make_kits(federation_file, out, now=time.time())
    print(f"{made.authority.path}: the authority")
    _print_authority(made.authority)
    print(f"{made.server.path}: the server's home")
    for home in made.sites:
        print(f"{home.path}: home of site {home.path.name}")
    print("each folder has a README.md of three steps; every site has approved the roster of all")
    print("this machine has made the private keys of every site: good for a pilot, not for more")


def _print_authority(home: object) -> None:
    from security.homes import AuthorityHome

    assert isinstance(home, AuthorityHome)
    found = home.authority()
    print(f"authority   {grouped(found.fingerprint)}  until {_day(found.not_after)}")


def grouped(digest: str) -> str:
    """A digest as people compare it."""
    return " ".join(digest[start : start + 4] for start in range(0, len(digest), 4))


def counted(count: int) -> str:
    """How many sites."""
    return f"{count} site{'' if count == 1 else 's'}"


def _day(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC).date().isoformat()
