"""Fetching what is known from its registry, and finding it again: each file by its digest, or not at all.

Python packages' files are found by the index' simple interface (PEP 503, PEP 691) at `$PIP_INDEX_URL`, else PyPI; npm's
at `$NPM_CONFIG_REGISTRY`, else npm's registry. What is taken out lies in the user's cache folder, read-only.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from security.errors import UsageError
from shared_models.downloads.known import Download, Member, download
from shared_models.features.store import cache_folder, locked

_PYPI: Final = "https://pypi.org/simple"
_NPM: Final = "https://registry.npmjs.org"
_PART: Final = 1 << 18  # bytes
_MOST_INDEX: Final = 64 << 20  # bytes of an index' answer
_SECONDS: Final = 60.0  # without an answer
_JSON: Final = "application/vnd.pypi.simple.v1+json"

Progress = Callable[[int, int], None]
"""Is told how many bytes of how many are there."""


def folder_of(name: str) -> Path:
    """Where the files of a known download lie once they are fetched."""
    return cache_folder() / "downloads" / name


def fetched(name: str) -> dict[str, Path]:
    """The files of a known download, by name, each compared with its digest.

    Raises:
        UsageError: one isn't there, or is another one; the text says how it is fetched.
    """
    known, folder = download(name), folder_of(name)
    found = {}
    for member in known.members:
        path = folder / member.name
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            raise UsageError(f"{name}: isn't on this machine yet; fetch it: veil data fetch {name}") from None
        if digest != member.sha256:
            raise UsageError(f"{path}: is damaged; fetch it again: veil data fetch {name}")
        found[member.name] = path
    return found


def fetch(name: str, progress: Progress = lambda *_: None) -> dict[str, Path]:
    """The files of a known download: from the cache folder, else from their registry.

    Args:
        name: one of `KNOWN`.
        progress: is told how far the download is.

    Raises:
        UsageError: there is nothing of that name, no registry to be reached, no room, or what came is something else.
    """
    known, folder = download(name), folder_of(name)
    with locked(folder):  # another process may be fetching it
        try:
            return fetched(name)
        except UsageError:
            return _fetch(known, folder, progress)


def _fetch(known: Download, folder: Path, progress: Progress) -> dict[str, Path]:
    archive = _archive(known, progress)
    contents = {member.name: _taken_out(known, member, archive) for member in known.members}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with TemporaryDirectory(dir=folder.parent, prefix=f".{known.name}-") as beside:
            made = Path(beside) / known.name
            made.mkdir()
            for file, content in contents.items():
                _write(made / file, content)
            if folder.exists():
                shutil.rmtree(folder)
            made.rename(folder)
    except OSError as error:
        raise UsageError(
            f"{folder}: can't be written ({error.strerror}); give VEIL_CACHE a folder with room"
        ) from error
    return fetched(known.name)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o444)


def _archive(known: Download, progress: Progress) -> bytes:
    """The registry's file, whole and compared with its digest: the largest is 84 MB."""
    address = _of_python(known) if known.registry == "python" else _of_npm(known)
    content = io.BytesIO()
    with _answer(address, known) as answer:
        while content.tell() <= known.size and (part := answer.read(_PART)):
            content.write(part)
            progress(content.tell(), known.size)
    found = content.getvalue()
    if hashlib.sha256(found).hexdigest() != known.sha256:
        raise UsageError(f"{known.name}: {_bare(address)} gave something else than it did; nothing was kept, try again")
    return found


def _of_python(known: Download) -> str:
    index = (os.environ.get("PIP_INDEX_URL") or _PYPI).rstrip("/")
    page = f"{index}/{re.sub(r'[-_.]+', '-', known.package).lower()}/"
    with _answer(page, known, accept=f"{_JSON}, text/html;q=0.1") as answer:
        kind, text = answer.headers.get("Content-Type", ""), answer.read(_MOST_INDEX).decode("utf-8", "replace")
    links = (
        {str(entry.get("filename")): str(entry.get("url")) for entry in _entries(_json(text, page))}
        if "json" in kind
        else {link.split("#")[0].rsplit("/", 1)[-1]: link for link in re.findall(r'href="([^"]+)"', text)}
    )
    if known.file not in links:
        raise UsageError(
            f"{known.name}: {_bare(page)} has no file {known.file}; set PIP_INDEX_URL to an index that does"
        )
    return str(urljoin(page, links[known.file]))


def _of_npm(known: Download) -> str:
    registry = (os.environ.get("NPM_CONFIG_REGISTRY") or _NPM).rstrip("/")
    return f"{registry}/{known.package}/-/{known.file}"


def _entries(page: dict[str, Any]) -> list[dict[str, Any]]:
    found = page.get("files")
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _json(text: str, page: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{_bare(page)}: isn't a package index; check PIP_INDEX_URL")
    return found


@contextmanager
def _answer(address: str, known: Download, accept: str = "*/*") -> Iterator[Any]:
    """What an address answers; whatever goes wrong meanwhile is one line."""
    parts = _split(address)
    if parts is None:
        raise UsageError(
            f"{known.name}: {_bare(address)} is no web address; set PIP_INDEX_URL or NPM_CONFIG_REGISTRY to one"
        )
    try:
        request = urllib.request.Request(_bare(address), headers={"Accept": accept})  # noqa: S310 - looked at above
        if parts.username is not None:
            secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            # For this host alone: where it sends us on to is another's.
            basic = "Basic " + base64.b64encode(secret.encode()).decode()
            request.add_unredirected_header("Authorization", basic)
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
            yield answer
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"{known.name}: {_bare(address)} can't be reached, or broke off ({reason}); try again with a network"
        ) from error


def _split(address: str) -> SplitResult | None:
    """A web address in parts; None if it is none."""
    try:
        parts = urlsplit(address)
        whole = parts.scheme in ("https", "http") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        return None
    # One that isn't percent-encoded: what is behind the @ isn't known to be no secret.
    return parts if whole and "@" not in parts.path + parts.query + parts.fragment else None


def _bare(address: str) -> str:
    """An address without the name and password in it, for requests and messages."""
    parts = _split(address)
    if parts is None:
        return f"{address.partition(':')[0][:10]}:..." if "@" in address or "[" in address else address[:200]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _taken_out(known: Download, member: Member, archive: bytes) -> bytes:
    content, where = archive, known.file
    try:
        for path in member.path.split(":"):
            content, where = _opened(where, content, path), path
    except (KeyError, OSError, tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise UsageError(f"{known.name}: {known.file} doesn't hold {member.path}; tell Veil's makers") from error
    if hashlib.sha256(content).hexdigest() != member.sha256:
        raise UsageError(f"{known.name}: {member.path} isn't what it was; tell Veil's makers")
    return content


def _opened(name: str, content: bytes, path: str) -> bytes:
    if name.endswith(".whl"):
        with zipfile.ZipFile(io.BytesIO(content)) as wheel:
            return wheel.read(path)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = tar.extractfile(path)
        if member is None:
            raise KeyError(path)
        return member.read()
