"""A site's home moves to another machine: packed into one file, unpacked once, dead where it was.

With two copies of its ledger a site would spend its budget twice. So the home that was packed gets a tombstone before
the file is there, and unpacking takes the file away. Anchors move with the ledger: they show that what arrived is
where the ledger ended. Data is not packed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import sqlite3
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final

from security.errors import UsageError
from security.home_lock import holding
from security.homes import SiteHome
from security.kit_files import write_site_kit
from security.private_files import make_folder, replace_file, sync_folder
from security.strict_json import parse_record, pretty

_KIND: Final = "veil packed home 1"
_MOVED: Final = "veil moved home 1"
_MANIFEST: Final = "manifest.json"
_ANCHOR: Final = ".anchor"
_BLOCK: Final = 1 << 20
_LARGEST_MANIFEST: Final = 1 << 24
_BUSY_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What is in the file.

    Attributes:
        site, federation: whose home it is.
        files: that were packed, as paths in the home.
        left: files and folders in the home that were not: data, logs, what Veil doesn't know.
    """

    site: str
    federation: str
    files: tuple[str, ...]
    left: tuple[str, ...] = ()


def ledger_anchor(home: SiteHome) -> Path:
    """The anchor file beside the ledger, wherever a link leads to it."""
    path = home.ledger.resolve()
    return path.with_name(path.name + _ANCHOR)


def pack(home: SiteHome, target: Path, *, when: str) -> Packed:
    """Pack a home for another machine. From then on it refuses to work where it was.

    Args:
        home: of the site; its client must not be running.
        target: the file to make. It holds the site's private keys.
        when: for the tombstone.

    Raises:
        UsageError: something is missing, in use, or can't be written; then the home is as it was.
    """
    home.check_here()
    peer = home.peer()
    if target.exists() or target.is_symlink():
        raise UsageError(f"{target}: exists already; name another file")
    if home.ledger.exists() and not ledger_anchor(home).exists():
        raise UsageError(f"{ledger_anchor(home)}: the ledger's anchor is missing; run `veil ledger recover` first")
    new = target.with_name(f".{target.name}.new")
    with holding(home.lock, "a running client"), tempfile.TemporaryDirectory(dir=home.path, prefix=".pack.") as folder:
        try:
            with _still(home.ledger, Path(folder)) as ledger, _still(home.outbox, Path(folder)) as outbox:
                files = _files(home)
                files |= {_name(home, path): copy for path, copy in {**ledger, **outbox}.items()}
                if home.ledger.exists():  # read while nobody can write: it fits the copy
                    files[_name(home, home.ledger) + _ANCHOR] = ledger_anchor(home)
                _write(new, files, {"federation": peer.federation, "site": peer.name, "when": when})
                replace_file(home.moved, pretty({"kind": _MOVED, "file": str(target.absolute()), "when": when}))
                new.replace(target)
                sync_folder(target.absolute().parent)
        except BaseException as error:
            if not target.exists():
                new.unlink(missing_ok=True)  # first: while it is there, the home must not come back to life
                home.moved.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise UsageError(f"{target}: can't be written ({error.strerror}); name another file") from error
    left = tuple(_left(home, files))
    return Packed(site=peer.name, federation=peer.federation, files=tuple(sorted(files)), left=left)


def unpack(source: Path, home: SiteHome) -> Packed:
    """Make the home in a new place, and take the file away: it may be unpacked once only.

    Args:
        source: what `pack` made.
        home: a folder that isn't there yet, or is empty.

    Raises:
        UsageError: the file is damaged or no packed home, or there is something in the folder.
    """
    folder = home.path.absolute()
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UsageError(f"{home.path}: is not empty; name a new folder for the home")
    make_folder(folder.parent)
    new = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        try:
            with source.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
                packed = _read(archive, source, new)
            _dress(SiteHome(new), packed, folder)
            new.replace(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except tarfile.TarError:
        raise UsageError(f"{source}: is no packed home, or is damaged; carry it over again") from None
    except OSError as error:
        where = error.filename or home.path
        raise UsageError(f"{where}: can't be read or written ({error.strerror}); nothing was unpacked") from error
    try:
        source.unlink()
    except OSError as error:
        raise UsageError(
            f"{source}: the home is in {home.path}, but this file can't be deleted ({error.strerror}); delete it: "
            f"unpacked again, it would spend the budget twice"
        ) from error
    return packed


def _files(home: SiteHome) -> dict[str, Path]:
    """What is packed as it lies there, by its name in the home: keys, certificates, and all that Veil wrote down."""
    fixed = (
        *(home.settings, home.tls_key, home.next_tls_key, home.identity_key, home.split_key),
        *(home.certificate, home.authority_certificate, *sorted(home.path.glob("*.json"))),
    )
    pending = sorted(home.pending.glob("*.toml")) if home.pending.is_dir() else []
    personal = sorted(home.personal.glob("*.safetensors")) if home.personal.is_dir() else []
    here = (home.status, home.moved)
    return {_name(home, path): path for path in (*fixed, *pending, *personal) if path.exists() and path not in here}


def _name(home: SiteHome, path: Path) -> str:
    return path.relative_to(home.path).as_posix()


@contextmanager
def _still(path: Path, folder: Path) -> Iterator[dict[Path, Path]]:
    """A copy of a database, which nobody can write to inside; nothing if there is none."""
    if not path.exists():
        yield {}
        return
    copy = folder / path.name
    try:
        # By its own name: SQLite's log lies beside the file, not beside a link to it.
        with closing(sqlite3.connect(path.resolve(), timeout=_BUSY_SECONDS, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            # Another connection reads: this one only keeps writers out.
            reader, target = (sqlite3.connect(place, isolation_level=None) for place in (path.resolve(), copy))
            with closing(reader), closing(target):
                reader.backup(target)
            yield {path: copy}
            database.execute("ROLLBACK")
    except sqlite3.Error as error:
        advice = "is in use; stop what uses it" if "locked" in str(error) else "can't be read; check it, or restore it"
        raise UsageError(f"{path}: {advice}, and pack again") from error


def _write(target: Path, files: Mapping[str, Path], facts: Mapping[str, str]) -> None:
    digests = {name: _digest(path) for name, path in sorted(files.items())}
    manifest = pretty({"kind": _KIND, **facts, "files": digests})
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(_entry(_MANIFEST, len(manifest)), io.BytesIO(manifest))
            for name in digests:
                with files[name].open("rb") as content:
                    archive.addfile(_entry(name, os.fstat(content.fileno()).st_size), content)
        file.flush()
        os.fsync(file.fileno())


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o600
    return entry


def _read(archive: tarfile.TarFile, source: Path, folder: Path) -> Packed:
    """Unpack what the manifest names, each file checked, into a new folder."""
    first = archive.next()
    if first is None or first.name != _MANIFEST or not first.isreg() or first.size > _LARGEST_MANIFEST:
        raise UsageError(f"{source}: is no packed home; name the file that `veil site pack` made")
    content = archive.extractfile(first)
    assert content is not None  # a regular file
    try:
        facts = parse_record(content.read(), _KIND, federation=str, site=str, when=str, files=dict)
        expected = {str(name): str(digest) for name, digest in facts["files"].items()}
        for name in expected:
            _check_name(name)
    except ValueError as error:
        raise UsageError(f"{source}: {error}; carry it over again") from None
    found = set()
    while (entry := archive.next()) is not None:
        if entry.name not in expected or entry.name in found or not entry.isreg():
            raise UsageError(f"{source}: holds what its manifest doesn't name; carry it over again")
        found.add(entry.name)
        content = archive.extractfile(entry)
        assert content is not None
        if _copy(content, folder / entry.name) != expected[entry.name]:
            raise UsageError(f"{source}: {entry.name} is damaged; carry it over again")
    if found != expected.keys():
        raise UsageError(f"{source}: was cut off; carry it over again")
    return Packed(site=facts["site"], federation=facts["federation"], files=tuple(sorted(found)))


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) != name or name in ("", ".", _MANIFEST):
        raise ValueError("names a file outside the home")


def _copy(content: IO[bytes], path: Path) -> str:
    """Write a file that only its owner may read; gives its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest = hashlib.sha256()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        while block := content.read(_BLOCK):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _dress(home: SiteHome, packed: Packed, place: Path) -> None:
    """Service, container and README again: they name the place."""
    make_folder(home.ledger.parent, private=True)
    try:
        address = str(tomllib.loads(home.settings.read_text(encoding="utf-8"))["server"]["address"])
        write_site_kit(home, federation=packed.federation, site=packed.site, address=address, place=place)
    except (OSError, ValueError, LookupError, TypeError):
        return  # settings that name no server: there is nothing to write it for


def _left(home: SiteHome, packed: Mapping[str, Path]) -> Iterator[str]:
    """What a person may be looking for at the new place: all but what is packed, or made again."""
    own = {home.moved.name, home.log.name, home.status.name, home.ledger.parent.name, "README.md", "Containerfile"}
    folders = {name.partition("/")[0] for name in packed}
    for path in sorted(home.path.iterdir()):
        is_log = path.name.startswith((home.outbox.name, ".")) or path.suffix == ".service"
        if path.name not in own | folders and not is_log:
            yield path.name + ("/" if path.is_dir() else "")
