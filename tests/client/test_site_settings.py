"""site.toml: the policy, and how the site runs beside it; what is wrong is named, and the policy alone is digested."""

from __future__ import annotations

from pathlib import Path

import pytest

from client.policy import SitePolicy, read_policy
from client.site_settings import SiteSettings, read_settings
from security.errors import UsageError

HEAD = 'site = "st-mary"\nbudget_scope = "patients"\n'
POLICY = (
    HEAD
    + '[[budget]]\nunit = "record"\ntrust = "local"\nepsilon = 8.0\ndelta = 1e-5\n'
    + '[allow]\nfederations = ["clinics"]\nrounds_a_day = 100\n[release]\ncounts = true\n'
)
OPERATIONAL = {
    "server": '[server]\naddress = "fl.example.org:8443"\nproxy = "http://proxy.example.org:3128"\n',
    "data": '[[data]]\nname = "heart-disease"\nformat = "csv"\npath = "rows.csv"\n',
    "approval": '[approval]\nplans = "policy"\n',
    "resources": '[resources]\nthreads = 4\nmemory_mb = 2000\nniceness = 0\ndevice = "cpu"\nlargest_message_mb = 10\n',
    "schedule": '[schedule]\nwindows = ["22:00-06:00", "12:00-13:00"]\non_battery = true\n'
    'metered = true\nhook = "go"\n',
}


def read(tmp_path: Path, text: str) -> SiteSettings:
    path = tmp_path / "site.toml"
    path.write_text(text, encoding="utf-8")
    return read_settings(path)


def refused(tmp_path: Path, text: str) -> str:
    with pytest.raises(UsageError) as found:
        read(tmp_path, text)
    return str(found.value).removeprefix(f"{tmp_path}/site.toml: ")


def test_every_key_is_read(tmp_path: Path) -> None:
    found = read(tmp_path, POLICY + "".join(OPERATIONAL.values()))
    assert found.server_address() == ("fl.example.org", 8443)
    assert found.server.proxy == "http://proxy.example.org:3128"
    assert found.approval.plans == "policy"
    assert (found.resources.threads, found.resources.memory_mb, found.resources.niceness) == (4, 2000, 0)
    assert (found.resources.device, found.resources.largest_message_mb) == ("cpu", 10)
    assert found.schedule.windows == ("22:00-06:00", "12:00-13:00")
    assert (found.schedule.on_battery, found.schedule.metered) == (True, True)
    data = found.data_for("heart-disease")
    assert data is not None
    assert (data.format, found.data_for("digits")) == ("csv", None)


@pytest.mark.parametrize("table", OPERATIONAL)
def test_the_policys_digest_does_not_change_with_how_the_site_runs(tmp_path: Path, table: str) -> None:
    plain = read(tmp_path, POLICY)
    policy = read_policy(tmp_path / "site.toml")
    found = read(tmp_path, POLICY + OPERATIONAL[table])
    assert found != plain
    assert found.digest() == plain.digest() == policy.digest() == found.policy.digest()
    assert type(found.policy) is SitePolicy
    assert found.policy == policy
    assert found.to_json() == policy.to_json()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("epsilon = 8.0", "epsilon = 8.5"),
        ("rounds_a_day = 100", "rounds_a_day = 101"),
        ("counts = true", "counts = false"),
        ('budget_scope = "patients"', 'budget_scope = "staff"'),
    ],
)
def test_the_digest_changes_with_every_rule(tmp_path: Path, one: str, other: str) -> None:
    everything = POLICY + "".join(OPERATIONAL.values())
    assert read(tmp_path, everything).digest() != read(tmp_path, everything.replace(one, other)).digest()


def test_a_site_that_says_nothing_is_careful(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD)
    assert found.approval.plans == "ask"
    assert found.data == ()
    assert (found.resources.threads, found.resources.niceness) == (1, 10)
    assert (found.schedule.on_battery, found.schedule.metered, found.schedule.hook) == (False, False, "")
    with pytest.raises(UsageError, match=r"server\.address is missing"):
        found.server_address()


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    text = HEAD + OPERATIONAL["schedule"]
    for name, path in (("a", "rows.csv"), ("b", "/data/rows.csv"), ("c", "~/rows.csv")):
        text += f'[[data]]\nname = "{name}"\nformat = "csv"\npath = "{path}"\n'
    (tmp_path / "home" / "site.toml").write_text(text)
    found = read_settings(Path("home/site.toml"))
    assert [data.path for data in found.data] == [f"{tmp_path}/home/rows.csv", "/data/rows.csv", "~/rows.csv"]
    assert found.schedule.hook == f"{tmp_path}/home/go"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('[server]\naddress = "fl.example.org"\n', "server.address = 'fl.example.org': must be host:port"),
        ('[server]\naddress = "fl.example.org:0"\n', "server.address = 'fl.example.org:0': must be host:port"),
        ('[server]\naddress = "https://fl.example.org:443"\n', "server.address = 'https://fl.example.org:443': must"),
        ('[server]\nproxy = "proxy:3128"\n', "server: proxy should be http://HOST:PORT"),
        ('[server]\nadress = "x"\n', "server.adress: unknown key; did you mean address?"),
        (
            '[[data]]\nname = "a"\nformat = "xls"\npath = "x"\n',
            "data.0.format = 'xls': allowed: 'csv', 'hugging-face', 'image-",
        ),
        ('[[data]]\nname = "a"\nformat = "csv"\n', "data.0.path: missing, give it a value"),
        ('[approval]\nplans = "always"\n', "approval.plans = 'always': allowed: 'ask', 'policy'"),
        ("[resources]\nthreads = 0\n", "resources.threads = 0: should be greater than or equal to 1"),
        ("[resources]\nniceness = -5\n", "resources.niceness = -5: should be greater than or equal to 0"),
        (
            '[resources]\ndevice = "tpu"\n',
            "resources.device = 'tpu': did you mean cpu? allowed: 'auto', 'cpu', 'cuda', 'mps'",
        ),
        ('[schedule]\nwindows = ["22-6"]\n', "schedule.windows.0 = '22-6': should be HH:MM-HH:MM"),
        ('[schedule]\nwindows = ["24:00-06:00"]\n', "schedule.windows.0 = '24:00-06:00': should be HH:MM-HH:MM"),
        ('[schedule]\nwindows = ["09:60-10:00"]\n', "schedule.windows.0 = '09:60-10:00': should be HH:MM-HH:MM"),
        ('[schedule]\nwindows = ["06:00-06:00"]\n', "schedule.windows.0 = '06:00-06:00': begins when it ends"),
        ("[schedule]\nalways = true\n", "schedule.always: unknown key; allowed: windows, on_battery, metered, hook"),
        ("[privacy]\nepsilon = 1\n", "privacy: unknown key; allowed: site, budget_scope, budget, allow, release, serv"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(tmp_path: Path, text: str, expected: str) -> None:
    found = refused(tmp_path, HEAD + text)
    assert found.startswith(expected)
    assert "\n" not in found


def test_a_proxys_password_is_not_repeated(tmp_path: Path) -> None:
    found = refused(tmp_path, HEAD + '[server]\nproxy = "http://me:secret@proxy:3128"\n')
    assert "no place in this file" in found
    assert "secret" not in found


def test_two_files_for_one_name_are_refused(tmp_path: Path) -> None:
    assert (
        refused(tmp_path, HEAD + OPERATIONAL["data"] * 2)
        == "two files for data.name = 'heart-disease'; keep one of them"
    )


def test_two_budgets_of_one_kind_are_refused(tmp_path: Path) -> None:
    budget = '[[budget]]\nunit = "record"\ntrust = "local"\nepsilon = 8.0\ndelta = 1e-5\n'
    assert refused(tmp_path, HEAD + budget * 2).startswith("two budgets for unit = 'record', trust = 'local'")
