"""What is put into a home beside keys and certificates: settings with comments, a service, a container, a README."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from security.addresses import split_address
from security.homes import ServerHome, SiteHome
from security.private_files import replace_file

if TYPE_CHECKING:
    import jinja2

_TEMPLATES: Final = Path(__file__).with_name("kit")
_VEIL: Final = "/opt/veil/bin/veil"
_PLACES: Final = Path("/var/lib/veil")
_PRIVILEGED: Final = 1024  # ports below are not for everybody
_PLAIN: Final = re.compile(r"/[A-Za-z0-9_./@-]*")


def write_site_kit(
    home: SiteHome, *, federation: str, site: str, address: str, place: Path | None = None, carried: bool = False
) -> None:
    """Write what a site's home lacks; settings that are there stay as they are.

    Args:
        home: of the site.
        federation, site: names.
        address: of the server.
        place: where the home will lie; where it lies now by default.
        carried: whether it was made elsewhere, private keys and all.
    """
    where = _plain(home.path.absolute() if place is None else place, site)
    unit = f"veil-site-{site}.service"
    facts = {
        "federation": federation,
        "site": site,
        "name": site,
        "address": address,
        "threads": 2,
        "place": where,
        "carried": carried,
        "unit": unit,
        "title": f"Veil, site {site} of {federation}",
        "command": f"client run {where}",
        "arguments": ["client", "run", "/veil/home"],
        "container": f"veil-site-{site}",
        "extras": "compression",
    }
    files = {
        "site.toml": "site.toml.j2",
        unit: "veil.service.j2",
        "Containerfile": "Containerfile.j2",
        "README.md": "site-README.md.j2",
    }
    _write(home.path, files, {**_COMMON, **facts})


def write_server_kit(home: ServerHome, *, federation: str, address: str) -> None:
    """Write what a server's home lacks, to be carried to its machine; settings that are there stay as they are.

    Args:
        home: of the server.
        federation: its name.
        address: as sites reach it; the server listens on the same port of all its addresses.
    """
    where = str(usual_place(f"{federation}-server"))
    port = split_address(address)[1]
    unit = f"veil-server-{federation}.service"
    facts = {
        "federation": federation,
        "name": f"{federation}-server",
        "address": address,
        "listen": f"0.0.0.0:{port}",
        "place": where,
        "carried": True,
        "unit": unit,
        "title": f"Veil, server of {federation}",
        "command": f"server resume {where} --stay",
        "arguments": ["server", "resume", "/veil/home", "--stay"],
        "container": f"veil-server-{federation}",
        "publish": f"{port}:{port}",
        "capability": "CAP_NET_BIND_SERVICE" if port < _PRIVILEGED else "",
        "extras": "compression,server",
        "restart": "on-abnormal",  # a run that failed waits for the operator; what was killed goes on
    }
    files = {
        "server.toml": "server.toml.j2",
        unit: "veil.service.j2",
        "Containerfile": "Containerfile.j2",
        "README.md": "server-README.md.j2",
    }
    _write(home.path, files, {**_COMMON, **facts})


def usual_place(name: str) -> Path:
    """Where a kit's README puts the home of a site or server on its machine."""
    return _PLACES / name


_COMMON: Final[Mapping[str, Any]] = {"veil": _VEIL, "publish": "", "capability": "", "restart": "always"}


def _write(folder: Path, files: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    # A service can't see homes of people at all, unless its own lies there.
    under_home = Path(facts["place"]).parts[1:2] in (("home",), ("root",))
    facts = {**facts, "protect_home": "read-only" if under_home else "yes"}
    for name, template in files.items():
        if not (folder / name).exists():
            text = _environment().get_template(template).render(facts)
            replace_file(folder / name, text.encode(), mode=0o600 if name.endswith(".toml") else 0o644)


def _plain(place: Path, name: str) -> str:
    """The place as shells and units take it without quotes; if it isn't so plain, the usual one."""
    return str(place if _PLAIN.fullmatch(str(place)) else usual_place(name))


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    import jinja2  # here: clients import this module, and seldom write a kit

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - no HTML
    )
    found.filters["toml"] = json.dumps  # of names and addresses, which are ASCII: the two languages write them alike
    return found
