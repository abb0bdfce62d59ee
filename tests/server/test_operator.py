"""The operator's line: local, for one user, and not to be upset by what is said on it."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from security.errors import RunError, UsageError
from server import operator
from server.operator import LARGEST_LINE, NoServerError, OperatorSocket, ask

Opened = Callable[..., Path]


def answer(request: Mapping[str, Any]) -> Mapping[str, Any]:
    match request.get("ask"):
        case "echo":
            return {"said": request["text"]}
        case "usage":
            raise UsageError("give more")
        case "run":
            raise RunError("the disk is full")
        case "defect":
            raise KeyError("patient 4711")
    raise UsageError("not known")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opened]:
    """A listening socket; the path to ask at."""
    sockets: list[OperatorSocket] = []

    def make(home: Path = tmp_path, handler: operator.Handler = answer) -> Path:
        home.mkdir(parents=True, exist_ok=True)
        sockets.append(OperatorSocket(home / "operator.sock", handler))
        sockets[-1].start()
        return home / "operator.sock"

    yield make
    for made in sockets:
        made.close()


def raw(path: Path, data: bytes) -> bytes:
    """What comes back for these bytes, to the end of the line."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(30)
        line.connect(str(path))
        with suppress(ConnectionError):  # nobody wants to hear it
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            with line.makefile("rb") as file:
                return file.read()
        return b""


def test_a_request_and_its_answer(opened: Opened) -> None:
    assert ask(opened(), {"ask": "echo", "text": "ü\n"}) == {"ok": True, "said": "ü\n"}


def test_only_its_user_may_open_the_socket(opened: Opened) -> None:
    found = opened().stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_the_kernel_says_who_is_at_the_other_end() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert operator._user_of(one) == os.getuid()


def test_another_user_gets_no_answer(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    path = opened()
    monkeypatch.setattr(operator, "_user_of", lambda line: os.getuid() + 1)
    assert raw(path, b'{"ask": "echo", "text": "x"}\n') == b""
    monkeypatch.setattr(operator, "_user_of", lambda line: 0)
    assert b"x" in raw(path, b'{"ask": "echo", "text": "x"}\n')  # root may


def test_another_users_program_is_told_nothing(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    path = opened(handler=lambda request: asked.append(request) or {})
    real = operator._user_of
    ours = threading.get_ident()
    stranger = os.getuid() + 1
    monkeypatch.setattr(operator, "_user_of", lambda line: stranger if threading.get_ident() == ours else real(line))
    with pytest.raises(UsageError, match="another user's program listens"):
        ask(path, {"ask": "stop"})
    assert asked == []


def test_errors_come_back_as_what_they_are(opened: Opened) -> None:
    path = opened()
    with pytest.raises(UsageError, match=r"^give more$"):
        ask(path, {"ask": "usage"})
    with pytest.raises(RunError, match=r"^the disk is full$"):
        ask(path, {"ask": "run"})
    with pytest.raises(RunError, match=r"^KeyError \(a defect of Veil's: report it\)$"):
        ask(path, {"ask": "defect"})


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}",  # no end
        b"[1]\n",
        b"nonsense\n",
        b"\xff\xfe\n",
        b'{"ask": 1}\n',
        b"[" * 100_000 + b"\n",
        b'{"ask": "' + b"x" * LARGEST_LINE + b'"}\n',
    ],
)
def test_malformed_lines_do_no_harm(opened: Opened, line: bytes) -> None:
    path = opened()
    said = raw(path, line)
    assert not said or json.loads(said)["ok"] is False
    assert ask(path, {"ask": "echo", "text": "still there"})["said"] == "still there"


def test_who_says_nothing_keeps_nobody_waiting(opened: Opened) -> None:
    path = opened()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        assert ask(path, {"ask": "echo", "text": "x"})["said"] == "x"


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(NoServerError, match=f"{tmp_path}: no server runs here"):
        ask(tmp_path / "operator.sock", {"ask": "status"})


def test_what_a_killed_server_left_is_replaced(opened: Opened, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "operator.sock"))
    with pytest.raises(NoServerError):
        ask(tmp_path / "operator.sock", {"ask": "status"})
    assert ask(opened(), {"ask": "echo", "text": "x"})["said"] == "x"


def test_nothing_is_left_after_the_end(tmp_path: Path) -> None:
    listening = OperatorSocket(tmp_path / "operator.sock", answer)
    listening.start()
    listening.close()
    assert list(tmp_path.iterdir()) == []


def test_a_home_whose_path_is_too_long_for_a_socket(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ("long" * 20) / ("longer" * 20)
    path = opened(home)
    short = Path((home / "operator.path").read_text().strip())
    assert stat.S_IMODE(short.parent.stat().st_mode) == 0o700
    assert not path.exists()
    assert ask(path, {"ask": "echo", "text": "x"})["said"] == "x"
    monkeypatch.chdir(home)  # the same home, named otherwise
    assert ask(Path("operator.sock"), {"ask": "echo", "text": "y"})["said"] == "y"


def test_a_long_path_leaves_nothing_behind_either(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 20) / ("longer" * 20)
    home.mkdir(parents=True)
    with pytest.raises(NoServerError):
        ask(home / "operator.sock", {"ask": "status"})
    for left_behind in (True, False):  # the first is killed, the second tidies up after both
        listening = OperatorSocket(home / "operator.sock", answer)
        listening.start()
        short = Path((home / "operator.path").read_text().strip())
        if left_behind:
            first, killed = short, listening
    listening.close()
    assert list(home.iterdir()) == []
    assert not short.parent.exists()
    assert not first.parent.exists()
    killed.close()


def test_a_place_that_others_could_have_made_is_not_asked(opened: Opened, tmp_path: Path) -> None:
    home = tmp_path / ("long" * 20) / ("longer" * 20)
    path = opened(home)
    short = Path((home / "operator.path").read_text().strip())
    short.parent.chmod(0o755)
    with pytest.raises(NoServerError):
        ask(path, {"ask": "echo", "text": "x"})
    short.parent.chmod(0o700)


def test_a_server_that_does_not_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "operator.sock"))
        deaf.listen()
        with pytest.raises(RunError, match="the server doesn't answer"):
            ask(tmp_path / "operator.sock", {"ask": "status"}, patience=0.1)
