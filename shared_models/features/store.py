"""Where derived matrices, and features of a simulation's data, are kept: a cache folder of the user's own.

`$VEIL_CACHE`, else `veil` in `$XDG_CACHE_HOME`, else `~/.cache/veil`. Everything in it can be made again; it may be
deleted at any time. A file that is damaged, or of another recipe, is made again with one note. Where the folder can't
be written, one note says so and work goes on without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from torch import Tensor

from shared_models.features.maps import FeatureMap, feature_map
from shared_models.features.matrices import Matrices, derive

_log = logging.getLogger("veil.features")


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    own = os.environ.get("VEIL_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veil"


def matrices_file(chosen: FeatureMap, shape: tuple[int, ...]) -> Path:
    """Where the matrices of a map for examples of a shape are kept."""
    height, width = chosen.image_size(shape)
    return cache_folder() / "features" / f"{chosen.name}-{height}x{width}-{chosen.source(shape)[:16]}.safetensors"


@lru_cache(maxsize=2)
def matrices(name: str, shape: tuple[int, ...]) -> Matrices:
    """The matrices of a map: from this process, else from their file, else derived and kept there.

    Raises:
        UsageError: there is no such map, it doesn't take such examples, or the public images aren't there.
    """
    chosen = feature_map(name)
    path, source = matrices_file(chosen, shape), chosen.source(shape)
    found = read_matrices(path, source)
    if found is not None:
        return found
    with locked(path):
        found = read_matrices(path, source, quiet=True)  # another process may have derived them meanwhile
        if found is None:
            _log.warning("deriving the matrices of '%s' once, from public images: a minute or two", name)
            found = derive(chosen, shape)
            keep(path, lambda file: write_matrices(file, found, source))
    return found


def read_matrices(path: Path, source: str, *, quiet: bool = False) -> Matrices | None:
    """What a file holds; None if it isn't there, or isn't what was written there under that source."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts.get("source") == source and facts.get("content") == _content(tensors):
            return Matrices.of(tensors)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError, ValueError):
        pass
    if not quiet:
        _log.warning("%s: is damaged, or not what its name says; it is made again", path)
    return None


def write_matrices(path: Path, found: Matrices, source: str) -> None:
    """Write matrices with their source and the digest of their content."""
    from safetensors.torch import save_file

    tensors = {name: tensor.contiguous() for name, tensor in found.tensors().items()}
    save_file(tensors, path, {"source": source, "content": _content(tensors)})


def _content(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()


def keep(path: Path, write: Callable[[Path], None]) -> bool:
    """Have a file written under another name and put in place whole, for its owner alone; one note if that fails."""
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as file:  # mode 0600
            part = Path(file.name)
        write(part)
        part.chmod(0o600)
        part.replace(path)
    except Exception as error:  # safetensors has errors of its own for a full disk
        if part is not None:
            part.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or type(error).__name__
        _log.warning(
            "%s: can't be written (%s); give VEIL_CACHE a folder with room, or it is made each time", path, reason
        )
        return False
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time makes a file; without a folder to write to, each does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = path.with_name(path.name + ".lock").open("w")
    except OSError:
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
