"""Where files lie, and that one process at a time works with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from security.errors import UsageError
from security.home_lock import holding
from security.homes import AuthorityHome, ServerHome, SiteHome, read_public


@pytest.mark.parametrize("kind", [AuthorityHome, SiteHome, ServerHome])
def test_everything_lies_in_the_home_each_under_its_own_name(kind: type) -> None:
    home = kind(Path("/home"))
    names = [name for name, value in vars(kind).items() if isinstance(value, property)]
    paths = [getattr(home, name) for name in names]
    assert len(set(paths)) == len(paths) >= 6
    assert all(path.is_relative_to("/home") for path in paths)


def test_two_don_t_work_in_one_home(tmp_path: Path) -> None:
    lock = SiteHome(tmp_path).lock
    with (
        holding(lock, "a running client"),
        pytest.raises(UsageError, match="is in use by a running client; stop that first"),
        holding(lock, "a running client"),
    ):
        pass
    with holding(lock, "a running client"):
        pass


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    lock = SiteHome(tmp_path).lock
    code = (
        "import sys; from pathlib import Path; from security.home_lock import holding\n"
        "with holding(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="is in use by it"), holding(lock, "it"):
            pass
        process.kill()
        process.wait()
    with holding(lock, "it"):
        pass


def test_no_home_no_lock(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no home that can be worked with"), holding(tmp_path / "no" / ".lock", "x"):
        pass
    (tmp_path / ".lock").symlink_to("elsewhere")
    with pytest.raises(UsageError, match="is no home"), holding(tmp_path / ".lock", "x"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_home_that_was_not_moved_is_here(tmp_path: Path) -> None:
    SiteHome(tmp_path).check_here()
    SiteHome(tmp_path).moved.symlink_to("nowhere")
    with pytest.raises(UsageError, match="to move elsewhere"):
        SiteHome(tmp_path).check_here()


def test_a_public_file_that_can_t_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none: can't be read \(No such file"):
        read_public(tmp_path / "none")
    with pytest.raises(UsageError, match="Is a directory"):
        read_public(tmp_path)
