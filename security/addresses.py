"""Where a server is reached: `host:port`, and which names a certificate may have."""

from __future__ import annotations

import ipaddress
import re
from typing import Final

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_ZONE: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_DNS: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is none; the text says what one looks like.
    """
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        is_host = _ip_version(host) == 6
    else:
        is_host = is_host_name(host) and _ip_version(host) != 6
    if not is_host or not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 1 << 16:
        raise ValueError("must be host:port, such as 'fl.example.org:8443', '192.0.2.7:8443' or '[2001:db8::7]:8443'")
    return host, int(port)


def is_host_name(text: str) -> bool:
    """Whether it is a DNS name without wildcards, or an IP address."""
    if _ip_version(text):
        return True
    # Four numbers that are no address are no name either.
    return len(text) <= 253 and _DNS.fullmatch(text) is not None and not re.fullmatch(r"[0-9.]+", text)


def _ip_version(text: str) -> int:
    # What comes after a % is the name of an interface. Python takes anything there, line ends and escapes too.
    if "%" in text and not _ZONE.fullmatch(text.partition("%")[2]):
        return 0
    try:
        return ipaddress.ip_address(text).version
    except ValueError:
        return 0
