"""`veil site`: a data owner joins a federation, renews its certificate, approves rosters, and moves."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from security.homes import SiteHome
    from security.roster import Roster

app = typer.Typer(
    help="Join a federation with your data (for its owner).", no_args_is_help=True, suggest_commands=False
)
roster_app = typer.Typer(help="Who takes part: look, and approve.", no_args_is_help=True, suggest_commands=False)
app.add_typer(roster_app, name="roster")

Home = Annotated[Path, typer.Option("--home", help="The site's home.", metavar="HOME")]


@app.command("request")
def request(
    home: Home,
    name: Annotated[str | None, typer.Argument(help="The site's name.", metavar="NAME")] = None,
    federation: Annotated[str | None, typer.Option(help="Name of the federation.", metavar="NAME")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="The next certificate for a site that has one.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="[default: NAME.request]", metavar="FILE")] = None,
    passphrase: Annotated[
        bool, typer.Option("--passphrase", help="Keys under a passphrase: of VEIL_PASSPHRASE_FILE, or asked for.")
    ] = False,
) -> None:
    """Make the site's keys, and a request for the authority. Private keys stay here."""
    from security import enrolment
    from security.errors import UsageError
    from security.homes import SiteHome
    from security.identity import Identity
    from security.private_files import replace_file
    from veil.commands.asking import new_passphrase, passphrase_for

    place = SiteHome(home)
    if renew:
        own = place.peer()
        if name not in (None, own.name) or federation not in (None, own.federation):
            raise UsageError(f"{home}: is site '{own.name}' of '{own.federation}', and a renewal changes neither")
        secret = passphrase_for(place.identity_key)
        data, name = enrolment.request_renewal(place, secret), own.name
    else:
        if name is None or federation is None:
            raise UsageError("give the site's name and --federation; or --renew, for a site that has a certificate")
        enrolment.check_names(federation, name)
        has_keys = place.identity_key.exists()
        secret = new_passphrase() if passphrase and not has_keys else passphrase_for(place.identity_key)
        enrolment.make_keys(place, secret)
        data = enrolment.request(place, federation=federation, site=name, passphrase=secret)
    target = Path(f"{name}.request") if out is None else out
    replace_file(target, data)
    print(f"{target}: for the authority; it may travel in the open")
    print(f"identity    {Identity.load(place.identity_key, secret).fingerprint}")
    print("tell the authority this identity by another way than the request goes: by telephone, or face to face")


@app.command("install")
def install(
    grant_file: Annotated[Path, typer.Argument(help="What the authority sent.", metavar="NAME.grant")],
    home: Home,
    accept_roster: Annotated[
        str | None, typer.Option(help="Don't ask: the roster with this digest is approved.", metavar="DIGEST")
    ] = None,
) -> None:
    """Install what the authority granted: certificate, roster, settings."""
    from security import enrolment
    from security.errors import RunError, UsageError
    from security.homes import SiteHome, read_public
    from veil.commands.asking import passphrase_for
    from veil.commands.provision import grouped

    place = SiteHome(home)
    data = read_public(grant_file, 1 << 24)
    secret = passphrase_for(place.identity_key)
    try:
        grant = enrolment.check_grant(place, data, secret, now=time.time())
    except ValueError as error:
        raise UsageError(f"{grant_file}: {error}; ask the authority to send it again") from None
    peer = grant.peer
    print(f"site        {peer.name} of {peer.federation}, server at {grant.address}")
    print(f"authority   {grouped(grant.roster.authority)}")
    print(f"certificate until {datetime.fromtimestamp(peer.not_after, UTC).date().isoformat()}")
    is_known = place.authority_certificate.exists() and enrolment.compare(place, grant.roster).is_none
    if not is_known:
        _print_roster(place, grant.roster)
        question = "Are authority and sites those that you agreed to work with?"
        if not _accepted(grant.roster, accept_roster, question):
            raise RunError("the roster was not approved, and nothing was installed")
    enrolment.install(place, grant, secret)
    print(f"{home}: installed; see README.md there")
    _compare_address(place, grant.address)


@app.command("show")
def show(home: Home) -> None:
    """Say who this site is, and until when."""
    from security.certificates import expiry_warning
    from security.homes import SiteHome
    from security.identity import fingerprint
    from veil.commands.provision import grouped

    place = SiteHome(home)
    place.check_here()
    peer = place.peer()
    print(f"site        {peer.name} of {peer.federation}")
    print(f"identity    {fingerprint(peer.identity or '')}")
    print(f"authority   {grouped(place.authority().fingerprint)}")
    print(f"certificate until {datetime.fromtimestamp(peer.not_after, UTC).date().isoformat()}")
    warning = expiry_warning(peer, time.time())
    if warning is not None:
        print(f"warning: {warning}")


@roster_app.command("show")
def roster_show(
    home: Home,
    path: Annotated[Path | None, typer.Argument(help="[default: the site's own]", metavar="FILE")] = None,
) -> None:
    """List the sites of a roster, and say whether this site has approved it."""
    from security import enrolment
    from security.homes import SiteHome
    from security.roster import read_roster
    from veil.commands.provision import grouped

    place = SiteHome(home)
    roster = read_roster(place.roster if path is None else path)
    enrolment.check_roster(place, roster)
    print(f"federation  {roster.federation}")
    print(f"authority   {grouped(roster.authority)}")
    _print_roster(place, roster, everything=True)
    approved = enrolment.is_approved(place, roster)
    print("approved by this site" if approved else "not approved by this site: `veil site roster approve FILE`")


@roster_app.command("approve")
def roster_approve(
    path: Annotated[Path, typer.Argument(help="What the authority sent.", metavar="FILE")],
    home: Home,
    accept_roster: Annotated[
        str | None, typer.Option(help="Don't ask: the roster with this digest is approved.", metavar="DIGEST")
    ] = None,
) -> None:
    """Approve a new roster: from now on the site works with those on it."""
    from security import enrolment
    from security.errors import RunError
    from security.homes import SiteHome
    from security.identity import Identity
    from security.roster import read_roster
    from veil.commands.asking import passphrase_for
    from veil.commands.provision import counted

    place = SiteHome(home)
    roster = read_roster(path)
    enrolment.check_roster(place, roster)
    if enrolment.is_approved(place, roster):
        print(f"digest {roster.digest}: approved already")
        return
    _print_roster(place, roster)
    if not _accepted(roster, accept_roster, "Are these the sites that you agreed to work with?"):
        raise RunError("the roster was not approved; the one before stays in force")
    identity = Identity.load(place.identity_key, passphrase_for(place.identity_key))
    enrolment.approve_roster(place, roster, identity)
    print(f"{place.roster}: approved, {counted(len(roster.sites))}")


@app.command("pack")
def pack(
    home: Annotated[Path, typer.Argument(help="The site's home.", metavar="HOME")],
    target: Annotated[Path, typer.Argument(help="The file to make.", metavar="FILE")],
) -> None:
    """Pack the home with its ledger, to move to another machine. It works no more where it was."""
    from security.homes import SiteHome
    from security.moving import pack as pack_home

    place = SiteHome(home)
    place.check_here()
    _check_ledger(place)
    packed = pack_home(place, target, when=datetime.now(UTC).isoformat(timespec="seconds"))
    print(f"{target}: site {packed.site}, {len(packed.files)} files")
    if packed.left:
        print(f"not packed: {', '.join(packed.left)}")
    print("it holds the site's private keys: carry it by a way that you trust, and unpack it once")
    print(f"{home}: works no more")


@app.command("unpack")
def unpack(
    source: Annotated[Path, typer.Argument(help="What `veil site pack` made.", metavar="FILE")],
    home: Annotated[Path, typer.Argument(help="A new folder.", metavar="HOME")],
) -> None:
    """Make a packed home at its new place, and delete the file."""
    from security.homes import SiteHome
    from security.moving import unpack as unpack_home

    place = SiteHome(home)
    packed = unpack_home(source, place)
    _check_ledger(place)
    print(f"{home}: site {packed.site} of {packed.federation}, {len(packed.files)} files; {source} is deleted")
    print(f"next: see that each path in {place.settings} is right here, then start the client")


def _check_ledger(home: SiteHome) -> None:
    """That the ledger is whole, and ends where its anchor says."""
    from privacy.ledger import Ledger, default_anchors

    if home.ledger.exists():
        with Ledger.open(home.ledger, read_only=True, anchors=default_anchors(home.ledger)) as ledger:
            for scope in ledger.scopes():
                ledger.head(scope)


def _accepted(roster: Roster, digest: str | None, question: str) -> bool:
    from security.errors import UsageError
    from veil.commands.asking import agreed

    if digest is None:
        return agreed(question, instead=f"--accept-roster {roster.digest}")
    if digest != roster.digest:
        raise UsageError(f"--accept-roster: this roster's digest is {roster.digest}, not the one given")
    return True


def _print_roster(home: SiteHome, roster: Roster, *, everything: bool = False) -> None:
    """The sites; where the owner has approved a roster before, what is new in this one."""
    from security import enrolment
    from security.identity import fingerprint
    from veil.commands.provision import counted

    change = enrolment.compare(home, roster)
    known = len(roster.sites) - len(change.added) - len(change.changed)
    print(f"roster      {roster.digest}  ({counted(len(roster.sites))})")
    for name, identity in sorted(roster.sites.items()):
        mark = "new" if name in change.added else "OTHER IDENTITY" if name in change.changed else ""
        if everything or mark or not known:
            print(f"  {name}  {fingerprint(identity)}  {mark if known else ''}".rstrip())
    for name in change.removed:
        print(f"  {name}  is no longer there")
    if not everything and known:
        print(f"  and {known} as approved before")


def _compare_address(home: SiteHome, address: str) -> None:
    from client.site_settings import read_settings
    from security.errors import UsageError

    try:
        written = read_settings(home.settings).server.address
    except UsageError as error:
        print(f"warning: {error}")
        return
    if written != address:
        print(f"warning: {home.settings}: server.address is {written!r}; the authority says {address!r}")
