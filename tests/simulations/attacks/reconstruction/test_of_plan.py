"""A user's plan or run is attacked in its first round; figures go beside it, records only where they are asked for."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from client.datasets.records import Records
from privacy.report.reconstructed import reconstruction_of
from security.errors import RunError, UsageError
from server.report import facts_of_folder, write_comparison, write_report
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.schedule import learning_rate
from simulations.attacks.reconstruction import of_plan
from simulations.attacks.reconstruction import seen as seeing
from simulations.attacks.reconstruction.figures import as_json
from simulations.attacks.reconstruction.inversion import Attack
from simulations.attacks.reconstruction.of_plan import Target, attack, find_target, first_round, keep
from simulations.attacks.reconstruction.seen import Options, attack_round
from simulations.run import Settings, start_run
from tests.simulations.attacks.reconstruction.plans import LOCAL, SUM, one_round, played

SCHEMA = json.loads((Path(__file__).parents[4] / "docs/schemas/reconstruction.schema.json").read_text("utf-8"))
ROUNDS = "federation.rounds=5"
QUICK = Options(attacks=(Attack(way="zhu", iterations=3),), inverted=1)


def target_of(plan: Plan, folder: Path, *, drawn: bool = False) -> Target:
    return Target(plan=plan, folder=RunFolder(folder), drawn=drawn, models={})


def attacked(target: Target, inverted: int = 1, iterations: int = 3) -> Any:
    return attack(target, inverted=inverted, iterations=iterations, say=lambda text: None)


@pytest.mark.parametrize("privacy", [(), (*LOCAL, "privacy.epsilon=8"), (*SUM, "privacy.epsilon=8")])
def test_the_first_round_has_the_noise_and_the_rate_of_the_whole_run(privacy: tuple[str, ...]) -> None:
    schedule = "training.schedule={kind='cosine',warmup_rounds=2}"
    plan = one_round(*privacy, ROUNDS, schedule, "evaluation.target=0.9", cohort=20)
    first = first_round(plan)
    assert first.federation.rounds == 1
    assert first.privacy.noise_multiplier == plan.privacy.noise_multiplier
    assert learning_rate(first, 1) == pytest.approx(learning_rate(plan, 1))
    assert learning_rate(plan, 1) < plan.training.learning_rate
    assert (first.data, first.model, first.seed) == (plan.data, plan.model, plan.seed)
    assert first.federation.cohort == plan.federation.cohort
    if privacy:  # one round of it costs less; a plan of one round with the run's epsilon would have less noise
        assert first.privacy.epsilon is not None
        assert plan.privacy.epsilon is not None
        assert first.privacy.epsilon < plan.privacy.epsilon


def test_a_budget_that_ends_early_does_not_end_the_attack(tmp_path: Path) -> None:
    plan = one_round(*LOCAL, "privacy.epsilon=8", "privacy.budget=0.01", ROUNDS)
    assert attacked(target_of(plan, tmp_path), inverted=0)[0].movements == 3


@pytest.mark.parametrize(
    "privacy", [(), (*LOCAL, "privacy.epsilon=8"), (*SUM, "privacy.epsilon=8")], ids=["none", "local", "sum"]
)
def test_figures_are_of_the_whole_plan_and_keep_to_their_schema(privacy: tuple[str, ...], tmp_path: Path) -> None:
    plan = one_round(*privacy, ROUNDS, cohort=20)
    seen, besides = attacked(target_of(plan, tmp_path))
    assert seen.plan == plan.digest()
    assert seen.epsilon == (8.0 if privacy else None)
    assert seen.labels_given is bool(privacy)
    assert len(besides) == seen.inverted == 1
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(as_json(seen)))
    told = reconstruction_of(as_json(seen), plan.digest())
    assert (told.trust, told.clients) == (plan.privacy.trust, 20 if plan.privacy.trust == "distributed" else 1)


def test_of_too_many_images_labels_and_line_up_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "MOST_RECORDS", 3)
    seen, besides = attack_round(played(images=4), QUICK)
    assert (seen.left_out, seen.inverted, seen.images, besides) == (("images-many",), 0, (), ())
    assert seen.labels == 1.0
    assert seen.line_up is not None
    assert seen.image_guess is None
    assert not seen.labels_given
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(as_json(seen)))


def test_a_clipped_inversion_that_would_not_fit_the_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seeing, "MOST_VALUES", 100)
    many = attack_round(played(*SUM, "privacy.epsilon=8", cohort=20), QUICK)[0]
    assert many.left_out == ("images-many",)
    assert attack_round(played(images=4), QUICK)[0].left_out == ()  # nothing is clipped, nothing held


def test_what_is_not_tried_is_said() -> None:
    everybody = seeing.attack_round(played("training.steps=2"), replace(QUICK, inverted=0))[0]
    assert everybody.left_out == ("images-unasked", "line-up-steps")


def test_a_server_without_records_and_a_round_with_all_have_nothing_to_guess_by() -> None:
    round_ = played()
    nothing = Records(x=round_.public.x[:0], y=round_.public.y[:0])
    seen, _ = attack_round(replace(round_, public=nothing, others=nothing), QUICK)
    assert (seen.image_guess, seen.label_guess, seen.others) == (None, None, 0)
    assert seen.left_out == ("guess-nothing", "line-up-nobody")
    assert [(one.recognised, one.by_chance) for one in seen.images] == [(None, None)]
    jsonschema.Draft202012Validator(SCHEMA).validate(json.loads(as_json(seen)))


def test_clients_without_records_are_passed_over() -> None:
    round_ = played(images=4)
    first = round_.overheard[0].client
    assert first is not None
    none = Records(x=round_.others.x[:0], y=round_.others.y[:0])
    seen, _ = attack_round(replace(round_, truth={**round_.truth, first: none}), QUICK)
    assert seen.movements == len(round_.overheard) - 1
    with pytest.raises(UsageError, match="no client of the round has a record"):
        attack_round(replace(round_, truth=dict.fromkeys(round_.truth, none)), QUICK)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("training.optimizer=adam",), "training.optimizer = 'adam'"),
        ((*LOCAL, "privacy.epsilon=8", "training.sample_rate=0.5"), "training.sample_rate = 0.5"),
        ((*SUM, "privacy.epsilon=8", "federation.strategy=fedadam"), "federation.strategy = 'fedadam'"),
        (("data.name=heart-disease", "data.partition={kind='iid',clients=10}"), "only images and texts"),
        (("personal={kind='finetune'}",), "[personal]"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_anything_is_played(
    overrides: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_plan, "resolve", lambda plan: one_round(*overrides))
    with pytest.raises(UsageError) as error:
        find_target("digits-plain", (), out=tmp_path / "x", force=False, drawn=False, models={})
    assert str(error.value).startswith(said)
    assert not list(tmp_path.iterdir())


# --- files


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of two rounds whose plan was attacked, with a picture."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    plan = one_round("federation.rounds=2")
    start_run(plan, folder, Settings(engine="inline"))
    target = find_target(str(folder), (), out=None, force=False, drawn=True, models={})
    keep(target, *attacked(target))
    return RunFolder(folder)


def test_a_run_gets_figures_and_its_owner_a_picture(run: RunFolder) -> None:
    assert json.loads(run.reconstruction.read_text())["plan"] == run.read_summary()["plan_digest"]
    assert stat.S_IMODE(run.reconstruction_picture.stat().st_mode) == 0o600
    assert run.reconstruction_picture.read_text().count("<image") == 4  # an image and a find, of two attacks


def test_its_report_tells_figures_and_no_picture(run: RunFolder) -> None:
    page = write_report(run).read_text()
    assert "What the server could have seen" in page
    for text in (page, (run.path / "report.json").read_text()):
        assert "reconstruction.svg" not in text
        assert "data:image" not in text
    assert "reconstruction.svg" in write_report(run, picture=True).read_text()
    assert "reconstruction.svg" not in write_comparison([run, run], run.path / "c.html").read_text()


def test_figures_that_are_not_the_runs_are_refused_in_one_line(run: RunFolder) -> None:
    whole = run.reconstruction.read_bytes()
    (line,) = {line for line in whole.decode().splitlines() if '"plan"' in line}
    bad: dict[bytes, str] = {
        whole[: len(whole) // 2]: "is damaged",
        b"": "is damaged",
        b"\xff\xfe": "is damaged",
        whole.replace(
            b"reconstruction-1", b"reconstruction-9"
        ): "holds no figures that this version reads (veil-reconstruction-1)",
        whole.replace(line.encode(), b'"plan": "' + b"0" * 64 + b'",'): "is of another plan than this run's",
    }
    try:
        for content, said in bad.items():
            run.reconstruction.write_bytes(content)
            with pytest.raises(UsageError) as error:
                facts_of_folder(run)
            assert str(error.value) == (
                f"{run.reconstruction}: {said}; attack the run again with --force, or remove the file"
            )
            assert error.value.__cause__ is None
    finally:
        run.reconstruction.write_bytes(whole)


def test_files_that_are_there_are_replaced_only_by_force(run: RunFolder, tmp_path: Path) -> None:
    def ask(**given: Any) -> Target:
        return find_target(str(run.path), (), **{"out": None, "force": False, "drawn": False, "models": {}, **given})

    with pytest.raises(UsageError, match="is there already; --force"):
        ask()
    with pytest.raises(UsageError, match="kept in the run's folder"):
        ask(out=tmp_path)
    with pytest.raises(UsageError, match="holds a run"):
        find_target("digits-plain", (), out=run.path, force=True, drawn=False, models={})
    kept = {path: path.read_bytes() for path in (run.reconstruction, run.reconstruction_picture)}
    try:
        target = ask(force=True)
        assert keep(target, *attacked(target, inverted=0)) == (run.reconstruction,)
        assert not run.reconstruction_picture.exists(), "a picture of other figures would mislead"
        with pytest.raises(UsageError, match=r"reconstruction\.svg isn't there; make it with veil attack"):
            write_report(run, picture=True)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
            path.chmod(0o600)


def test_an_attack_that_failed_leaves_no_folder(tmp_path: Path) -> None:
    target = target_of(one_round("training.learning_rate=1e30", "training.steps=3"), tmp_path / "new")
    with pytest.raises(RunError, match="the round that was to be attacked failed"):
        attacked(target)
    assert not list(tmp_path.iterdir())


def test_a_new_run_does_not_take_older_figures_for_its_own(tmp_path: Path) -> None:
    plan = one_round()
    seen, besides = attack_round(played(), replace(QUICK, inverted=0))
    keep(target_of(plan, tmp_path / "run"), seen, besides)
    with pytest.raises(UsageError, match=r"reconstruction\.json: is of an attack before this run"):
        start_run(plan, tmp_path / "run", Settings(engine="inline"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["reconstruction.json"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("somebody's")
    seen, besides = attack_round(played(), replace(QUICK, inverted=0))
    target = target_of(one_round(), tmp_path / "file")
    with pytest.raises(UsageError, match="can't be written"):
        keep(target, seen, besides)
    monkeypatch.setattr(of_plan, "play_round", None)  # it is found out before anything is played
    with pytest.raises(UsageError, match="can't be written"):
        attacked(target)
    assert (tmp_path / "file").read_text() == "somebody's"
