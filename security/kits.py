"""A whole federation made in one place, for pilots: authority, server, and a home for each site, all ready to start.

Whoever makes it has had the private keys of every site. For anything but a pilot each site makes its own
(`veil site request`).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from security.enrolment import approve_roster, check_grant, install, make_keys, request
from security.errors import UsageError
from security.federation_file import read_federation
from security.homes import AuthorityHome, ServerHome, SiteHome
from security.identity import Identity
from security.kit_files import usual_place, write_site_kit
from security.private_files import make_folder
from security.provision import at_work, found


@dataclass(frozen=True, kw_only=True)
class Kits:
    """What was made."""

    authority: AuthorityHome
    server: ServerHome
    sites: Sequence[SiteHome]


def make_kits(federation_file: Path, folder: Path, *, now: float) -> Kits:
    """Make `authority`, `server` and `sites/NAME` in a folder: whole, or not at all.

    Args:
        federation_file: `federation.toml`; it must name sites.
        folder: may hold other things.
        now: seconds since 1970.

    Raises:
        UsageError: the file says something wrong, or there is something of that name already.
    """
    federation = read_federation(federation_file)
    if not federation.sites:
        raise UsageError(f"{federation_file}: sites: missing; kits are made for the sites that it names")
    parts = folder / "authority", folder / "server", folder / "sites"
    for path in parts:
        if path.exists() or path.is_symlink():
            raise UsageError(f"{path}: exists already, and a key is never overwritten; name another folder")
    make_folder(folder)
    kits = Kits(
        authority=AuthorityHome(parts[0]),
        server=ServerHome(parts[1]),
        sites=tuple(SiteHome(parts[2] / name) for name in federation.sites),
    )
    try:
        _make(kits, federation_file, now)
    except BaseException:
        for path in parts:
            shutil.rmtree(path, ignore_errors=True)
        raise
    return kits


def _make(kits: Kits, federation_file: Path, now: float) -> None:
    federation = found(kits.authority, federation_file, passphrase=None, now=now)
    with at_work(kits.authority, None) as office:
        for home in kits.sites:
            make_keys(home, None)
            asked = request(home, federation=federation.name, site=home.path.name, passphrase=None)
            grant = check_grant(home, office.approve(asked, now=now), None, now=now)
            write_site_kit(
                home,
                federation=federation.name,
                site=home.path.name,
                address=federation.address,
                place=usual_place(home.path.name),
                carried=True,
            )
            install(home, grant, None)
        roster = office.roster()
        for home in kits.sites:  # the whole one: while they were made, each knew those before it
            approve_roster(home, roster, Identity.load(home.identity_key))
        office.equip_server(kits.server, passphrase=None, now=now)
