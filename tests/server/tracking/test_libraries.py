"""What the libraries write is read back: the run's figures, and nothing that they collect by themselves."""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.run_folder import RunFolder

ROOT = Path(__file__).parents[3]
SMALL = ("model.name=mlp", "model.options.hidden=[8]", "federation.rounds=3", "training.steps=2")

# Plays a run with all three trackers, and tells of each connection that Python code makes beyond this machine.
PLAY = """
import socket, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan

real = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        print("CALLS", address, flush=True)
    return real(self, address)
socket.socket.connect = connect
real_name = socket.getaddrinfo
def name(host, *rest, **named):
    if host not in (None, "127.0.0.1", "::1", "localhost"):
        print("ASKS", host, flush=True)
    return real_name(host, *rest, **named)
socket.getaddrinfo = name
socket.gethostname = lambda: "very-secret-machine"

track = ("tensorboard=tb", "mlflow=ml", "wandb=offline:wb")
start_run(find_plan("digits", {small!r}), Path("one-run"), Settings(engine="inline", track=track))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was tracked by all three, as a user and in a folder whose names are known."""
    folder = tmp_path_factory.mktemp("a-private-folder")
    environment = {
        **os.environ,
        "LOGNAME": "a-secret-user",
        "USER": "a-secret-user",
        "VEIL_SECRET_VARIABLE": "hush-hush",
    }
    done = subprocess.run(
        [sys.executable, "-c", PLAY.format(root=str(ROOT), small=SMALL)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "", "nobody was called, and nothing printed"
    assert done.stderr == ""
    return folder


def files(place: Path, *names: str) -> Iterator[tuple[Path, bytes]]:
    for name in names:
        for path in sorted((place / name).rglob("*")):
            if path.is_file():
                yield path, path.read_bytes()


def test_nothing_tells_of_machine_user_place_code_or_environment(place: Path) -> None:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    secrets = {
        "very-secret-machine",
        "a-secret-user",
        "hush-hush",
        "a-private-folder",
        str(ROOT),
        str(Path.home()),
        sys.executable,
        commit,
        *(name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 5),  # shorter ones occur by chance
    } - {"", "/root", "/"}
    found = list(files(place, "tb", "ml", "wb"))
    assert {path.relative_to(place).parts[0] for path, _ in found} == {"tb", "ml", "wb"}
    for path, content in found:
        for secret in secrets:
            assert secret.encode() not in content, f"{secret} in {path}"
            assert secret not in str(path.relative_to(place))
        for word in (b"requirements", b"cpu_count", b"gpu", b"executable", b"codePath", b"diskUsage", b"mlflow.source"):
            assert word not in content, f"{word!r} in {path}"


def lines_of(place: Path) -> list[dict[str, Any]]:
    return RunFolder(place / "one-run").read_metrics()


def test_tensorboards_own_reader_finds_the_rounds_and_the_summary(place: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (path,) = (place / "tb" / "one-run").iterdir()
    assert re.fullmatch(r"events\.out\.tfevents\.\d{10}\.veil", path.name)
    events = EventAccumulator(str(place / "tb" / "one-run"))
    events.Reload()
    read = [(event.step, event.value) for event in events.Scalars("round/evaluation.accuracy")]
    written = [(line["round"], pytest.approx(line["evaluation"]["accuracy"], rel=1e-6)) for line in lines_of(place)]
    assert read == written
    (epsilon,) = events.Scalars("summary/privacy.epsilon_max")
    summary = json.loads((place / "one-run" / "summary.json").read_text())
    assert epsilon.value == pytest.approx(summary["privacy"]["epsilon_max"], rel=1e-6)
    (words,) = events.Tensors("summary/text_summary")
    assert b"| privacy.unit | record, not person |" in words.tensor_proto.string_val[0]


def test_mlflow_finds_the_run_its_parameters_and_its_rounds(place: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'ml' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "one-run"
    assert run.info.status == "FINISHED"
    assert run.data.params["training.steps"] == "2"
    read = client.get_metric_history(run.info.run_id, "round/evaluation.accuracy")
    assert [(one.step, one.value) for one in read] == [
        (line["round"], line["evaluation"]["accuracy"]) for line in lines_of(place)
    ]
    assert run.data.tags["veil.privacy.trust"] == "local"
    assert all(tag.startswith("veil.") or tag == "mlflow.runName" for tag in run.data.tags)


def records_of(content: bytes) -> Iterator[bytes]:
    """The records of a log as LevelDB writes it: blocks of 32 KiB, pieces with checksum, length and kind."""
    block, at, pieces = 1 << 15, 7, b""
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        pieces += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield pieces
            pieces = b""


def test_wandbs_offline_file_holds_the_rounds_and_no_logs(place: Path) -> None:
    from wandb.proto import wandb_internal_pb2

    (path,) = (place / "wb").rglob("*.wandb")
    rounds: dict[int, float] = {}
    for data in records_of(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        values = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if "round/evaluation.accuracy" in values:
            rounds[int(json.loads(values["_step"]))] = float(json.loads(values["round/evaluation.accuracy"]))
    assert rounds == {line["round"]: line["evaluation"]["accuracy"] for line in lines_of(place)}
    assert not [found for found in (place / "wb").rglob("*.log") if found.is_file()]


def test_a_folder_that_can_not_be_written_ends_no_run(tmp_path: Path) -> None:
    from server.observer import Silent
    from simulations.run import Settings, start_run
    from simulations.scenarios import find_plan

    (tmp_path / "file").write_text("")
    notes: list[str] = []

    class Notes(Silent):
        def note(self, text: str) -> None:
            notes.append(text)

    track = (f"tensorboard={tmp_path / 'file'}", f"mlflow={tmp_path / 'file' / 'below'}")
    plan = find_plan("digits", (*SMALL, "privacy.trust=none"))
    _, outcome = start_run(plan, tmp_path / "run", Settings(engine="inline", observer=Notes(), track=track))
    assert outcome.stopped is None
    assert sorted(notes) == [
        "tracker mlflow: FileExistsError; the run goes on without it"
        if (tmp_path / "file").is_dir()
        else "tracker mlflow: NotADirectoryError; the run goes on without it",
        "tracker tensorboard: NotADirectoryError; the run goes on without it",
    ]


def test_a_server_that_is_not_there_ends_no_run(tmp_path: Path) -> None:
    with socket.socket() as taken:  # nobody listens at a port that is only bound
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from veil.main import main\n"
            f"main(['simulate', 'digits', '--engine', 'inline', '--track', 'mlflow={uri}', '--out', 'run', '--set', "
            "'federation.rounds=1', '--set', 'model.name=mlp', '--set', 'privacy.trust=none'])"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
    (warning,) = [line for line in done.stderr.splitlines() if "tracker" in line]
    assert re.fullmatch(r"note: tracker mlflow: \w+; the run goes on without it", warning)
    assert "Traceback" not in done.stderr


def test_who_asks_for_no_tracker_imports_none(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from simulations.run import Settings, start_run\n"
        "from simulations.scenarios import find_plan\n"
        "plan = find_plan('digits', ('model.name=mlp', 'federation.rounds=1', 'privacy.trust=none'))\n"
        "start_run(plan, Path('run'), Settings(engine='inline'))\n"
        "print(*(name for name in ('mlflow', 'server.tracking', 'tensorboard', 'wandb') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""
