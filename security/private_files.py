"""Files with secrets in them, which nobody but their owner may read; and files that a crash leaves old or new.

A private file has mode 0600 from its first byte on and never takes the place of another. Whoever reads one refuses it
if others on the machine could have read it.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Final

from security.errors import UsageError

_LARGEST_FILE: Final = 1 << 16


def read_private(
    path: Path, *, what: str = "key", hint: str = "name the file that it was saved to", group: bool = False
) -> bytes:
    """The content of a private file, 64 KiB at most.

    Args:
        path: of the file.
        what: it holds, for errors.
        hint: what to do where there is none.
        group: whether its group may read it all the same.

    Raises:
        UsageError: there is none, it can't be read, or others may read it.
    """
    try:
        with path.open("rb") as file:
            # Of the opened file, not of the name: the name may point elsewhere by the time it is read.
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise UsageError(f"{path}: is not a file; {hint}")
            if mode & (0o037 if group else 0o077):
                raise UsageError(f"{path}: others on this machine may read this private {what}; run chmod 600 {path}")
            return file.read(_LARGEST_FILE)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; {hint}") from None
    except OSError as error:
        raise UsageError(f"{path}: can't read the {what} ({error.strerror})") from error


def write_private(path: Path, data: bytes, *, what: str = "key") -> None:
    """Write a new file that only its owner may read: whole, or not at all.

    Raises:
        UsageError: something is there already (a private file is never overwritten), or it can't be written.
    """
    new = _beside(path)
    try:
        try:
            _write(new, data, 0o600)
            _publish(new, path)
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)
        sync_folder(path.parent)
    except FileExistsError:
        raise UsageError(f"{path}: exists already, and a {what} is never overwritten; name another file") from None
    except OSError as error:
        raise UsageError(f"{path}: can't write the {what} ({error.strerror}); name another file") from error


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file, or put another content in its place: a crash leaves the old one or the new.

    Args:
        path: of the file. A link is replaced, not followed.
        data: all of it.
        mode: 0o600 for what others may not read.

    Raises:
        UsageError: it can't be written.
    """
    new = _beside(path)
    try:
        try:
            _write(new, data, mode)
            new.replace(path)
        except BaseException:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise UsageError(
            f"{path}: can't be written ({error.strerror}); make room, or give the right to write"
        ) from error


def make_folder(path: Path, *, private: bool = False) -> None:
    """Make a folder and those above it, unless it is there; a private one is entered by its owner alone.

    Raises:
        UsageError: it can't be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700 if private else 0o755)
    except OSError as error:
        raise UsageError(f"{path}: can't make this folder ({error.strerror}); name another one") from error


def sync_folder(path: Path) -> None:
    """Make a folder's list of names outlast a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{token_hex(4)}.new")


def _write(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)  # whatever the umask
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _publish(new: Path, path: Path) -> None:
    """Give the finished file its name, unless that is taken, be it by a link that leads nowhere."""
    try:
        os.link(new, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        new.replace(path)
