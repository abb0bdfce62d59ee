"""How a contender's process is watched: its memory with all that it starts, its answer, its failure."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from simulations.benchmarks.engines import contender, floor
from simulations.benchmarks.engines.measure import measure, run
from simulations.benchmarks.engines.memory import TreeMemory
from simulations.benchmarks.engines.playing import Played, read
from tests.simulations.benchmarks.engines.conftest import TaskMaker, small

# A process that starts another, which takes 200 MB, says so, and waits until its input ends.
CHILD = "b = bytearray(200_000_000); b[::4096] = b'1' * len(b[::4096]); print('ready', flush=True); input()"
PARENT = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {CHILD!r}]).returncode)"


def test_a_childs_memory_counts_and_so_does_its_end() -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process,
        TreeMemory(process.pid) as memory,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        memory.look()
        (child,) = psutil.Process(process.pid).children()
    assert 200e6 < memory.peak < 400e6
    assert process.returncode is not None  # the tree was ended when it was no longer watched
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def answer(**changes: object) -> str:
    played = Played(imported=1.0, rounds=[2.0, 3.0], updates=[4, 4], change=1.0, parameters=7, versions={})
    return Played(**{**vars(played), **changes}).to_text()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('one\\ntwo')", "ended with code 1: two"),
        ("import os; os._exit(3)", "ended with code 3: it told nothing"),
        ("import os; os.kill(os.getpid(), 9)", "ended with code -9: it told nothing"),
        ("""print('{"error": "no such thing"}')""", "no such thing"),
        (f"print({answer(updates=[4, 3])!r})", "round 2 has the updates of 3 of 4 clients"),
        (f"print({answer(rounds=[2.0])!r})", "played 1 of 2 rounds"),
        (f"print({answer(change=0.0)!r})", "the model's change is 0.0"),
        (f"print({answer(change=float('nan'))!r})", "the model's change is nan"),
        ("input()", "it was not done within 1 s"),
    ],
)
def test_whatever_goes_wrong_is_a_row_with_a_reason_of_one_line(task_of: TaskMaker, code: str, reason: str) -> None:
    patience = 1.0 if code == "input()" else 60.0
    waits = f"import signal; signal.pause() if {code == 'input()'} else None\n{code}"
    found = run(task_of("floor", "B"), "floor", command=[sys.executable, "-c", waits], patience=patience)
    assert (found.work, found.contender, found.error) == ("B", "floor", reason)
    assert found.first is None
    assert found.later == []


def test_a_contender_that_raises_tells_kind_and_text_in_one_line(
    task_of: TaskMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise KeyError("one\ntwo")

    monkeypatch.setattr(contender, "be_alone", lambda: None)
    monkeypatch.setattr(floor, "play", fail)
    assert contender.main([task_of("floor", "B").to_text()]) == 1
    assert read(capsys.readouterr().out) == "KeyError: 'one\\ntwo'"


def test_a_contender_that_is_not_there_is_told_too(
    task_of: TaskMaker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contender, "be_alone", lambda: None)
    monkeypatch.setitem(contender.MODULES, "floor", "no_such_module")
    assert contender.main([task_of("floor", "B").to_text()]) == 1
    assert "ModuleNotFoundError: No module named" in str(read(capsys.readouterr().out))


def test_moments_become_spans_whatever_is_printed_beside_the_answer(task_of: TaskMaker) -> None:
    code = (
        "import json, time; t = time.monotonic(); print('hello')\n"
        "print(json.dumps(dict(imported=t, rounds=[t + 1, t + 3], updates=[4, 4], change=1.0, parameters=7, "
        "versions={})))\nprint('{'); print('[1]')"
    )
    found = run(task_of("floor", "B"), "floor", command=[sys.executable, "-c", code])
    assert found.error is None
    assert found.imports is not None
    assert found.first == pytest.approx(found.imports + 1)
    assert found.later == [pytest.approx(2)]


def test_pfl_research_is_not_asked_for_what_it_does_not_have(task_of: TaskMaker) -> None:
    found = run(task_of("pfl", "C-private"), "pfl")
    assert found.error == "has no DP-SGD of examples: its mechanisms protect clients"


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    from simulations.benchmarks.engines import measure as module

    monkeypatch.setattr(module, "run", lambda task, label, repeat, folder: (repeat, task.work.name, label))
    works = [small("B"), small("C-private")]
    found = list(measure(works, ["floor", "inline"], rounds=2, repeats=2, processes=1, folder=tmp_path))  # type: ignore[arg-type]
    once = [("B", "floor"), ("B", "inline")]
    once += [("C-private", label) for label in ("floor", "inline, bookkeeping", "inline, opacus")]
    assert found == [(repeat, *case) for repeat in (1, 2) for case in once]
