"""server.toml: strict, with every error a line that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from security.errors import UsageError
from server.settings import read_settings


def written(folder: Path, text: str) -> Path:
    path = folder / "server.toml"
    path.write_text(text)
    return path


def test_what_is_left_out_has_defaults(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, 'federation = "hospitals"'))
    assert settings.address == "0.0.0.0:8443"
    assert settings.wait.sites == "all"
    assert settings.deadline_seconds == 3600
    assert settings.beat_seconds == 10
    assert settings.metrics.port == 0
    assert settings.data == ()


def test_everything_can_be_set(tmp_path: Path) -> None:
    settings = read_settings(
        written(
            tmp_path,
            """
            federation = "hospitals"
            address = "[::1]:443"
            deadline_seconds = 60
            beat_seconds = 0.5
            largest_message = 16
            most_sites = 3
            wait = { sites = 2, seconds = 5 }
            metrics = { port = 9100 }
            [[data]]
            name = "heart-disease"
            format = "csv"
            path = "test.csv"
            [[data]]
            name = "digits"
            format = "npz"
            path = "/srv/digits.npz"
            """,
        )
    )
    assert (settings.wait.sites, settings.wait.seconds, settings.most_sites) == (2, 5, 3)
    heart, digits = settings.test_data("heart-disease"), settings.test_data("digits")
    assert heart is not None
    assert digits is not None
    assert heart.path == str(tmp_path / "test.csv")  # from the file's own folder
    assert (digits.format, digits.path) == ("npz", "/srv/digits.npz")
    assert settings.test_data("csv") is None


def test_one_table_of_data_may_stand_alone(tmp_path: Path) -> None:
    settings = read_settings(written(tmp_path, 'federation = "x"\n[data]\nname = "csv"\npath = "a.csv"\n'))
    assert [one.name for one in settings.data] == ["csv"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "federation: missing, give it a value"),
        ('federation = "a b"', "federation = 'a b': "),
        ('federation = "x"\naddres = "a:1"', "addres: unknown key; did you mean address? "),
        ('federation = "x"\naddress = "host"', "address = 'host': give HOST:PORT"),
        ('federation = "x"\naddress = "host:99999"', "address = 'host:99999': give HOST:PORT"),
        ('federation = "x"\nbeat_seconds = 0', "beat_seconds = 0: "),
        ('federation = "x"\nlargest_message = 1048577', "largest_message = 1048577: "),  # no Welcome can tell it
        ('federation = "x"\nwait = { sites = "some" }', "wait.sites"),
        ('federation = "x"\nwait = { sites = 0 }', "wait.sites"),
        ('federation = "x"\nmetrics = { port = 70000 }', "metrics.port = 70000: "),
        ('federation = "x"\n[[data]]\nname = "a"', "path: missing"),
        ('federation = "x"\n[[data]]\nname = "a"\npath = "b"\nformat = "xls"', "format = 'xls': allowed: 'csv'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, error: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as found:
        read_settings(path)
    assert error in str(found.value)
    assert all(line.startswith(f"{path}: ") for line in str(found.value).splitlines())


def test_one_data_set_is_named_once(tmp_path: Path) -> None:
    table = '[[data]]\nname = "csv"\npath = "a.csv"\n'
    with pytest.raises(UsageError, match="two tables for the data set 'csv'"):
        read_settings(written(tmp_path, 'federation = "x"\n' + 2 * table))
