"""One process at a time works with a home."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from security.errors import UsageError


@contextmanager
def holding(lock: Path, who: str) -> Iterator[None]:
    """Hold a home's lock inside. It is gone with the process that holds it, however that ends.

    Args:
        lock: `home.lock`.
        who: could be holding it now, for the error: "a running client".

    Raises:
        UsageError: another process holds it, or there is no such home.
    """
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UsageError(f"{lock.parent}: is no home that can be worked with ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{lock.parent}: is in use by {who}; stop that first") from None
        yield
    finally:
        os.close(descriptor)
