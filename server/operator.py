"""The operator's line to a running server: a Unix socket in its home, one JSON object a line each way.

Local only, and only for the user that the server runs as, and root: the socket has mode 0600, and both ends ask the
kernel who is at the other. Where a home's path is too long for a socket's name, the socket is in a folder of its own
and the home says where.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import stat
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from security.errors import RunError, UsageError, VeilError
from security.private_files import replace_file

LARGEST_LINE: Final = 1 << 22  # bytes; a plan travels in one, and a status of a thousand sites
_LONGEST_NAME: Final = 100  # bytes of a socket's path: Linux takes 107, others 103
_PATIENCE: Final = 10.0  # seconds for the other end
_SHORT: Final = "operator.path"  # in the home, if the socket is elsewhere: where

Handler = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Answers a request; `UsageError` and `RunError` are told to whoever asked."""


class NoServerError(UsageError):
    """No server runs in this home."""


class OperatorSocket:
    """The server's end: a thread that listens, and one for each request.

    Args:
        path: of the socket: `home.socket`. What is left of a server that was killed is replaced.
        handler: answers requests; it is called from several threads.

    Raises:
        RunError: the socket can't be made.
    """

    def __init__(self, path: Path, handler: Handler) -> None:
        path = path.resolve()
        self._pointer = path.with_name(_SHORT)
        self._folder: Path | None = None
        try:
            _clear(path)
            if _is_long(path):
                self._folder = Path(tempfile.mkdtemp(prefix="veil-", dir=_short_folder()))  # mode 0700
                path = self._folder / path.name
                replace_file(self._pointer, f"{path}\n".encode())
            self._path = path
            self._server = _Listener(path, handler)
        except OSError as error:
            raise RunError(f"{path}: can't listen for the operator ({error.strerror})") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="veil-operator", daemon=True
        )

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening and remove the socket; requests that are being answered are waited for."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        with suppress(OSError):
            _clear(self._pointer.with_name(self._path.name))


def ask(path: Path, request: Mapping[str, Any], *, patience: float = _PATIENCE) -> dict[str, Any]:
    """Ask the server that listens at `path` (`home.socket`).

    Raises:
        NoServerError: no server runs there.
        UsageError: the server says what is wrong with the request, or it isn't one of ours.
        RunError: the server could not do it, or doesn't answer.
    """
    home = path.parent
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            line.settimeout(patience)
            line.connect(str(_where(path)))
            other = _user_of(line)
            if other is not None and other not in (os.getuid(), home.stat().st_uid, 0):
                raise UsageError(f"{home}: another user's program listens for the operator there; look into it")
            line.sendall(json.dumps(request).encode() + b"\n")
            with line.makefile("rb") as file:
                answer = _read(file.readline(LARGEST_LINE + 1))
    except (FileNotFoundError, ConnectionRefusedError):
        raise NoServerError(f"{home}: no server runs here; begin with: veil server start (or resume) {home}") from None
    except PermissionError:
        raise UsageError(f"{home}: its server belongs to another user; ask as that user") from None
    except TimeoutError:
        raise RunError(f"{home}: the server doesn't answer; it may be overloaded, or stopped by a debugger") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "what it says can't be read"
        raise RunError(f"{home}: the server doesn't answer ({reason})") from None
    if answer.get("ok") is True:
        return answer
    text = str(answer.get("error", "the server says no"))
    raise UsageError(text) if answer.get("usage") is True else RunError(text)


def _where(path: Path) -> Path:
    """The socket, or the place that the home names for it: only one that others can't have made."""
    path = path.resolve()
    try:
        short = Path(path.with_name(_SHORT).read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        if _is_long(path):
            raise FileNotFoundError(str(path)) from None
        return path
    if not short.is_absolute() or short.name != path.name:
        raise FileNotFoundError(str(path))
    folder = short.parent.lstat()
    owner = path.parent.stat().st_uid
    if not stat.S_ISDIR(folder.st_mode) or folder.st_uid not in (owner, 0) or folder.st_mode & 0o077:
        raise FileNotFoundError(str(short))
    return short


def _clear(path: Path) -> None:
    """Remove a home's socket: this server's, or what one that was killed has left."""
    with suppress(OSError, ValueError):
        short = _where(path)
        if short != path:
            short.unlink(missing_ok=True)
            short.parent.rmdir()
    path.unlink(missing_ok=True)
    path.with_name(_SHORT).unlink(missing_ok=True)


def _is_long(path: Path) -> bool:
    return len(os.fsencode(path)) > _LONGEST_NAME


def _short_folder() -> str:
    """Where private folders with short names can be made."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    return runtime if runtime and Path(runtime).is_dir() and len(os.fsencode(runtime)) < 40 else "/tmp"  # noqa: S108  # mkdtemp


class _Listener(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = False  # a request that changes something is finished before the server ends
    block_on_close = True
    request_queue_size = 16

    def __init__(self, path: Path, handler: Handler) -> None:
        self.answer = handler
        super().__init__(str(path), _Request)

    def server_bind(self) -> None:
        os.fchmod(self.socket.fileno(), 0o600)  # on Linux the name is made with it: there is no moment without
        super().server_bind()
        Path(str(self.server_address)).chmod(0o600)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        user = _user_of(request)
        return user is None or user in (os.getuid(), 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone; the library would print a trace."""


class _Request(socketserver.StreamRequestHandler):
    timeout = _PATIENCE
    server: _Listener

    def handle(self) -> None:
        """Read one line, answer one line."""
        try:
            request = _read(self.rfile.readline(LARGEST_LINE + 1))
        except ValueError:
            answer: Mapping[str, Any] = {"ok": False, "usage": True, "error": "not a request"}
        else:
            answer = self._answer(request)
        self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            return {"ok": True, **self.server.answer(request)}
        except VeilError as error:
            return {"ok": False, "usage": isinstance(error, UsageError), "error": str(error)}
        except Exception as error:  # a defect must not end the line; its text may hold anything
            return {"ok": False, "usage": False, "error": f"{type(error).__name__} (a defect of Veil's: report it)"}


def _read(line: bytes) -> dict[str, Any]:
    """The object in a line.

    Raises:
        ValueError: there is none.
    """
    if not line.endswith(b"\n"):
        raise ValueError("cut off, or too long")
    try:
        found = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _user_of(line: socket.socket) -> int | None:
    """The user at the other end, as the kernel knows; None where it doesn't say (then the socket's mode must do)."""
    if sys.platform != "linux":
        return None
    found = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", found)
    return int(user)
