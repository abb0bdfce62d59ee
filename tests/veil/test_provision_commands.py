"""`veil provision` and `veil site`: what a person types and sees, from founding to moving."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from security.certificates import DAY
from security.homes import AuthorityHome, ServerHome, SiteHome
from security.identity import Identity
from security.private_files import write_private
from veil.main import main

Command = Callable[..., tuple[int, str, str]]

FEDERATION = """
name = "heart-study"
[server]
address = "fl.example.org:8443"
"""


class Terminal(io.StringIO):
    """Somebody is there to be asked."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def veil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Exit code, standard output and standard error of a command, in a folder with federation.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    (tmp_path / "federation.toml").write_text(FEDERATION)

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What the person at the terminal types."""

    def type_in(text: str) -> None:
        monkeypatch.setattr("sys.stdin", Terminal(text))

    return type_in


@pytest.fixture(scope="module")
def joined_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority in `ca`, site st-mary in `home`, and the files that they sent each other."""
    folder = tmp_path_factory.mktemp("joined")
    (folder / "federation.toml").write_text(FEDERATION)
    out = io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out):
        for command in (
            "provision init federation.toml --home ca",
            "site request st-mary --federation heart-study --home home",
            "provision approve st-mary.request --home ca --yes",
            "site install st-mary.grant --home home --accept-roster {digest}",
        ):
            with pytest.raises(SystemExit) as ended:
                main(command.format(digest=(re.findall(r"digest ([0-9a-f]{64})", out.getvalue()) or [""])[-1]).split())
            assert not ended.value.code
    return folder


@pytest.fixture
def joined(veil: Command, joined_folder: Path, tmp_path: Path) -> Command:
    """`veil` in a copy of that folder."""
    shutil.copytree(joined_folder, tmp_path, dirs_exist_ok=True)
    return veil


def digest_of(out: str) -> str:
    return re.findall(r"[0-9a-f]{64}", out)[0]


def is_one_line(err: str) -> bool:
    return err.startswith("error: ") and err.count("\n") == 1


def test_a_site_joins(veil: Command, answer: Callable[[str], None]) -> None:
    code, out, _ = veil("provision", "init", "federation.toml", "--home", "ca")
    authority = re.findall(r"authority   ([0-9a-f ]{79})  until", out)
    assert code == 0
    assert len(authority) == 1

    code, out, _ = veil("site", "request", "st-mary", "--federation", "heart-study", "--home", "home")
    identity = Identity.load(SiteHome(Path("home")).identity_key).fingerprint
    assert code == 0
    assert f"identity    {identity}" in out

    answer("y\n")
    code, out, err = veil("provision", "approve", "st-mary.request", "--home", "ca")
    assert code == 0
    assert f"identity    {identity}" in out
    assert "st-mary  (new)" in out
    assert "Does the site itself say this identity" in err
    digest = digest_of(out)

    answer("y\n")
    code, out, err = veil("site", "install", "st-mary.grant", "--home", "home")
    assert code == 0
    assert f"authority   {authority[0]}" in out
    assert digest in out
    assert f"  st-mary  {identity}" in out
    assert "Are authority and sites those that you agreed to work with?" in err

    code, out, _ = veil("site", "show", "--home", "home")
    assert code == 0
    assert out.splitlines()[0] == "site        st-mary of heart-study"
    assert "warning" not in out
    code, out, _ = veil("site", "roster", "show", "--home", "home")
    assert code == 0
    assert out.splitlines()[-1] == "approved by this site"


@pytest.mark.parametrize(("typed", "code"), [("n\n", 1), ("\n", 1), ("", 130)])
def test_who_doesn_t_say_yes_approves_nothing(
    veil: Command, answer: Callable[[str], None], typed: str, code: int
) -> None:
    veil("provision", "init", "federation.toml", "--home", "ca")
    veil("site", "request", "st-mary", "--federation", "heart-study", "--home", "home")
    answer(typed)
    assert veil("provision", "approve", "st-mary.request", "--home", "ca")[0] == code
    assert not Path("st-mary.grant").exists()
    assert list(Path("ca/issued").iterdir()) == []
    veil("provision", "approve", "st-mary.request", "--home", "ca", "--yes")
    answer(typed)
    assert veil("site", "install", "st-mary.grant", "--home", "home")[0] == code
    assert not SiteHome(Path("home")).certificate.exists()


def test_where_nobody_can_be_asked_the_command_says_what_to_give(veil: Command) -> None:
    veil("provision", "init", "federation.toml", "--home", "ca")
    veil("site", "request", "st-mary", "--federation", "heart-study", "--home", "home")
    code, _, err = veil("provision", "approve", "st-mary.request", "--home", "ca")
    assert (code, is_one_line(err)) == (2, True)
    assert "give --yes" in err
    veil("provision", "approve", "st-mary.request", "--home", "ca", "--yes")
    code, _, err = veil("site", "install", "st-mary.grant", "--home", "home")
    assert (code, is_one_line(err)) == (2, True)
    digest = re.findall("give --accept-roster ([0-9a-f]{64})", err)[0]
    code, _, err = veil("site", "install", "st-mary.grant", "--home", "home", "--accept-roster", "0" * 64)
    assert (code, is_one_line(err)) == (2, True)
    assert veil("site", "install", "st-mary.grant", "--home", "home", "--accept-roster", digest)[0] == 0


def test_another_site_joins_and_is_approved(joined: Command, answer: Callable[[str], None]) -> None:
    joined("site", "request", "north", "--federation", "heart-study", "--home", "north")
    joined("provision", "approve", "north.request", "--home", "ca", "--yes")
    joined("provision", "roster", "--home", "ca", "--out", "new.json")
    code, out, _ = joined("site", "roster", "show", "new.json", "--home", "home")
    assert (code, "not approved by this site" in out) == (0, True)
    answer("n\n")
    code, _, err = joined("site", "roster", "approve", "new.json", "--home", "home")
    assert code == 1
    assert "the one before stays in force" in err
    answer("y\n")
    code, out, _ = joined("site", "roster", "approve", "new.json", "--home", "home")
    assert code == 0
    north = Identity.load(SiteHome(Path("north")).identity_key).fingerprint
    assert f"  north  {north}  new" in out
    assert "and 1 as approved before" in out
    assert joined("site", "roster", "show", "--home", "home")[1].splitlines()[-1] == "approved by this site"
    code, out, _ = joined("site", "roster", "approve", "new.json", "--home", "home")
    assert (code, "approved already" in out) == (0, True)


def test_a_renewal_asks_the_owner_nothing(joined: Command) -> None:
    before = SiteHome(Path("home")).peer()
    assert joined("site", "request", "--renew", "--home", "home")[0] == 0
    code, out, _ = joined("provision", "approve", "st-mary.request", "--home", "ca", "--yes")
    assert (code, "(renewal)" in out, "roster has changed" in out) == (0, True, False)
    assert joined("site", "install", "st-mary.grant", "--home", "home")[0] == 0
    assert SiteHome(Path("home")).peer().serial != before.serial


def test_the_owner_is_told_of_the_end(joined: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 350 * DAY)
    code, out, _ = joined("site", "show", "--home", "home")
    assert code == 0
    assert re.search(r"warning: .* expires in 1[45] days .*veil site request --renew", out)


def test_a_server_s_home(joined: Command) -> None:
    code, out, _ = joined("provision", "server", "--home", "ca", "--out", "server")
    assert (code, "1 site" in out) == (0, True)
    before = ServerHome(Path("server")).peer()
    code, _, err = joined("provision", "server", "--home", "ca", "--out", "server")
    assert (code, is_one_line(err)) == (2, True)
    assert joined("provision", "server", "--home", "ca", "--out", "server", "--renew")[0] == 0
    assert ServerHome(Path("server")).peer().serial != before.serial


def test_revoking(joined: Command) -> None:
    code, out, _ = joined("provision", "revoke", "st-mary", "--home", "ca")
    assert (code, "1 certificate revoked; 0 sites left" in out) == (0, True)
    code, _, err = joined("provision", "revoke", "st-mary", "--home", "ca")
    assert (code, is_one_line(err), "is revoked already" in err) == (2, True, True)
    code, out, _ = joined("provision", "show", "--home", "ca")
    assert code == 0
    assert re.search(r"st-mary +site +\d{4}-\d\d-\d\d +revoked", out)


def test_keys_under_a_passphrase(veil: Command, monkeypatch: pytest.MonkeyPatch, answer: Callable[[str], None]) -> None:
    secret = "correct horse"
    write_private(Path("passphrase"), f"{secret}\n".encode())
    monkeypatch.setenv("VEIL_PASSPHRASE_FILE", "passphrase")
    assert veil("provision", "init", "federation.toml", "--home", "ca", "--passphrase")[0] == 0
    request = ("site", "request", "st-mary", "--federation", "heart-study", "--home", "home")
    assert veil(*request, "--passphrase")[0] == 0
    assert veil("provision", "approve", "st-mary.request", "--home", "ca", "--yes")[0] == 0
    monkeypatch.delenv("VEIL_PASSPHRASE_FILE")
    for home in (AuthorityHome(Path("ca")).authority_key, SiteHome(Path("home")).identity_key):
        assert b"ENCRYPTED" in home.read_bytes()

    code, _, err = veil("provision", "roster", "--home", "ca")
    assert (code, is_one_line(err)) == (2, True)
    assert "VEIL_PASSPHRASE_FILE" in err

    asked = []

    def prompt(text: str, **options: object) -> str:
        asked.append((text, options["hide_input"]))
        return secret if len(asked) < 3 else "wrong"

    monkeypatch.setattr(typer, "prompt", prompt)
    answer("")
    digest = digest_of(veil("provision", "roster", "--home", "ca")[1])
    assert veil("site", "install", "st-mary.grant", "--home", "home", "--accept-roster", digest)[0] == 0
    code, out, err = veil("provision", "roster", "--home", "ca")
    assert (code, is_one_line(err)) == (2, True)
    assert "no key that this passphrase opens" in err
    assert "wrong" not in out + err
    assert all(hidden for _, hidden in asked)


def test_moving(joined: Command) -> None:
    code, out, _ = joined("site", "pack", "home", "st-mary.home")
    assert (code, "home: works no more" in out) == (0, True)
    for command in (
        ("site", "show", "--home", "home"),
        ("site", "request", "--renew", "--home", "home"),
        ("site", "pack", "home", "again.home"),
        ("client", "run", "home"),
    ):
        code, _, err = joined(*command)
        assert (code, is_one_line(err), "would spend its budget twice" in err) == (2, True, True), command
    code, out, _ = joined("site", "unpack", "st-mary.home", "there")
    assert (code, "st-mary.home is deleted" in out) == (0, True)
    assert joined("site", "show", "--home", "there")[0] == 0


def test_kits(veil: Command) -> None:
    Path("federation.toml").write_text(FEDERATION.replace("[server]", 'sites = ["a", "b"]\n[server]'))
    code, out, _ = veil("provision", "kits", "federation.toml", "--out", "kits")
    assert code == 0
    assert {path.name for path in Path("kits/sites").iterdir()} == {"a", "b"}
    assert "good for a pilot, not for more" in out
    for name in ("a", "b"):
        assert "approved by this site" in veil("site", "roster", "show", "--home", f"kits/sites/{name}")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("provision init none.toml --home new", "none.toml: can't be read (No such file or directory)"),
        ("provision init federation.toml --home ca", "has an authority already"),
        ("provision roster --home nowhere", "nowhere: is no authority's home; make one with `veil provision init`"),
        ("provision approve federation.toml --home ca --yes", "federation.toml: is not JSON"),
        ("provision approve st-mary.grant --home ca --yes", "st-mary.grant: is not a veil certificate request"),
        ("provision revoke west --home ca", "site 'west' has no certificate"),
        ("provision kits federation.toml --out kits", "sites: missing"),
        ("site request --home new", "give the site's name and --federation"),
        ("site request ../x --federation heart-study --home new", "a name has letters"),
        ("site request x --federation heart-study --home home", "renew it with --renew"),
        ("site request other --renew --home home", "a renewal changes neither"),
        ("site request --renew --home nowhere", "certificates/site.pem: can't be read"),
        ("site install st-mary.request --home home", "st-mary.request: is not a veil grant"),
        ("site install st-mary.grant --home nowhere", "identity.key: no such file"),
        ("site roster approve federation.toml --home home", "federation.toml: is not JSON"),
        ("site pack nowhere file", "certificates/site.pem: can't be read"),
        ("site unpack federation.toml new", "federation.toml: is no packed home"),
        ("site show --home nowhere", "certificates/site.pem: can't be read"),
    ],
)
def test_wrong_usage_is_one_line(joined: Command, arguments: str, words: str) -> None:
    code, _, err = joined(*arguments.split())
    assert (code, is_one_line(err)) == (2, True), err
    assert words in err
    assert not Path("new").exists()


def test_a_server_that_moved_is_told(joined: Command) -> None:
    """The owner's settings stay, and the command says that the authority says otherwise."""
    text = Path("ca/federation.toml").read_text()
    Path("ca/federation.toml").write_text(text.replace("fl.example.org:8443", "new.example.org:443"))
    joined("site", "request", "--renew", "--home", "home")
    joined("provision", "approve", "st-mary.request", "--home", "ca", "--yes")
    code, out, _ = joined("site", "install", "st-mary.grant", "--home", "home")
    assert code == 0
    assert "server.address is 'fl.example.org:8443'; the authority says 'new.example.org:443'" in out
    assert "fl.example.org" in SiteHome(Path("home")).settings.read_text()
