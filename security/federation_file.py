"""`federation.toml`: what an authority is told once about the federation that it founds."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from security.addresses import is_host_name, split_address
from security.certificates import is_name
from security.errors import UsageError, did_you_mean
from security.homes import read_public

_NAME_HINT: Final = "a name has letters, digits, '_', '.' and '-', at most 100, and begins with a letter or digit"


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A federation as its authority knows it.

    Attributes:
        name: of the federation.
        address: of its server, host:port, as sites reach it.
        names: DNS names and IP addresses for the server's certificate.
        sites: names of the sites that may join; empty lets the authority approve any.
    """

    name: str
    address: str
    names: tuple[str, ...]
    sites: tuple[str, ...] = ()


def read_federation(path: Path) -> Federation:
    """Read the file.

    Raises:
        UsageError: it can't be read, or says something else; the text names the key.
    """
    return federation_from_toml(read_public(path, 1 << 20), str(path))


def federation_from_toml(text: bytes, where: str) -> Federation:
    """What the file says; `where` names it in errors.

    Raises:
        UsageError: as for `read_federation`.
    """
    try:
        data = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid TOML: {' '.join(str(error).split())}") from error
    _check_keys(data, ("name", "sites", "server"), "", where)
    name = data.get("name")
    if not isinstance(name, str) or not is_name(name):
        raise UsageError(f"{where}: name = {_short(name)}: {_NAME_HINT}")
    sites = _texts(data.get("sites", []), "sites", where)
    for site in sites:
        if not is_name(site):
            raise UsageError(f"{where}: sites: {_short(site)}: {_NAME_HINT}")
    server = data.get("server")
    if not isinstance(server, dict):
        raise UsageError(f"{where}: server: missing; write [server] and address = 'fl.example.org:8443'")
    _check_keys(server, ("address", "names"), "server.", where)
    address = server.get("address")
    try:
        host, _ = split_address(address if isinstance(address, str) else "")
    except ValueError as error:
        raise UsageError(f"{where}: server.address = {_short(address)}: {error}") from None
    assert isinstance(address, str)
    names = _texts(server.get("names", [host]), "server.names", where)
    for item in names:
        if not is_host_name(item):
            raise UsageError(f"{where}: server.names: {_short(item)}: must be a DNS name or an IP address")
    return Federation(name=name, address=address, names=names, sites=sites)


def _texts(value: object, key: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UsageError(f"{where}: {key} = {_short(value)}: must be a list of texts")
    if len(set(value)) != len(value):
        raise UsageError(f"{where}: {key}: names something twice")
    return tuple(value)


def _check_keys(table: Mapping[str, Any], allowed: tuple[str, ...], prefix: str, where: str) -> None:
    for key in table:
        if key not in allowed:
            hint = did_you_mean(key, allowed)
            raise UsageError(f"{where}: {prefix}{_short(key)}: unknown key; {hint}allowed: {', '.join(allowed)}")


def _short(given: object) -> str:
    text = ascii(given)
    return "missing" if given is None else text if len(text) <= 60 else text[:57] + "..."
