"""Plans as TOML: what is read, what an override does, what an error says, and that what is written is read back."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from security.errors import UsageError
from shared_models.plan import Plan
from shared_models.plan_federation import MEAN_STRATEGIES, ROBUST_STRATEGIES
from shared_models.plan_file import parse_plan, plan_from, read_plan, write_plan

CARD = 'data.card.classes = ["a", "b"]\ndata.card.columns.x = {kind = "numeric", low = 0, high = 1}\n'
RESOLVED = "[privacy]\nepsilon = 4.0\nnoise_multiplier = 1.5\ncalibrated_from = "


def errors(text: str, *overrides: str) -> list[str]:
    """The lines of the error that a text gives."""
    with pytest.raises(UsageError) as caught:
        parse_plan(text, where="p.toml", overrides=overrides)
    return str(caught.value).split("\n")


# --- reading -------------------------------------------------------------------------------------------------------


def test_an_empty_text_is_the_plan_of_defaults() -> None:
    assert parse_plan("", where="p") == Plan()


@pytest.mark.parametrize(
    "text", [".".join("a" * 200_000) + " = 1", f"[{' . '.join('1' * 9000)}]", "a = {'='" + ".'='" * 9000 + " = 1}"]
)
def test_a_key_of_parts_without_end_is_refused_at_once(text: str) -> None:
    """The library would be busy with it for an hour: the plan may be a hostile server's."""
    assert errors(text) == ["p.toml: tables within tables without end; a file has five levels at most"]


@pytest.mark.parametrize("text", ["[" + "0.5, -1.5," * 5000 + "]", '["' + "a.b" * 900 + '"]'])
def test_a_long_line_of_numbers_or_words_is_no_such_key(text: str) -> None:
    assert all("without end" not in line for line in errors(f"data.card.classes = {text}"))


def test_plain_dictionaries_are_read_and_left_as_they_were() -> None:
    raw: dict[str, Any] = {"privacy": {"epsilon": 2.0}, "training": {}}
    plan = plan_from(raw, where="p", overrides=["privacy.epsilon=3", "training.schedule.kind=step"])
    assert (plan.privacy.epsilon, plan.training.schedule.kind) == (3.0, "step")
    assert raw == {"privacy": {"epsilon": 2.0}, "training": {}}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name = \n", 1),
        ('name = "a"\nseed = 7 8\n', 2),
        ('name = "a"\n\n[data\n', 3),
        ('name = "a"\nname = "b"\n', 2),
        ("[data]\n[data]\n", 2),
        ("\x00", 1),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(text: str, line: int) -> None:
    (error,) = errors(text)
    assert error.startswith("p.toml: not valid TOML: ")
    assert f"line {line}" in error


@pytest.mark.parametrize("text", ["seed = " + "1" * 5000, "seed = " + "[" * 5000, "a" + ".a" * 5000 + " = 1"])
def test_toml_that_is_too_much_for_python_is_a_wrong_plan_and_not_a_crash(text: str) -> None:
    (error,) = errors(text)
    assert error.startswith("p.toml: ")
    assert len(error) < 400


def test_a_file_is_read_and_named_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    path.write_text('name = "é"\n', encoding="utf-8")
    with pytest.raises(UsageError, match=f"^{path}: name = 'é'"):
        read_plan(path)
    with pytest.raises(UsageError, match=r"^mine: name = 'é'"):
        read_plan(path, where="mine")
    assert read_plan(path, ["name=plain"]).name == "plain"


@pytest.mark.parametrize(
    ("given_path", "read"),
    [
        ("own.csv", "{folder}/own.csv"),
        ("data/./own.csv", "{folder}/data/own.csv"),
        ("../own.csv", "{folder}/../own.csv"),  # not shortened: the folder may be a link
        (".", "{folder}"),
        ("/data/own.csv", "/data/own.csv"),
        ("~/own.csv", "~/own.csv"),
    ],
)
def test_the_data_a_file_names_is_looked_for_from_the_files_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_path: str, read: str
) -> None:
    folder = tmp_path / "plans"
    folder.mkdir()
    (folder / "plan.toml").write_text(f"data.path = '{given_path}'\n")
    monkeypatch.chdir(tmp_path)
    for path in (folder / "plan.toml", Path("plans/plan.toml")):
        assert read_plan(path).data.path == read.format(folder=folder)


def test_the_data_an_override_names_is_looked_for_from_where_one_is(tmp_path: Path) -> None:
    (tmp_path / "plan.toml").write_text("data.path = 'own.csv'\n")
    assert read_plan(tmp_path / "plan.toml", ["data.path=other.csv"]).data.path == "other.csv"
    assert read_plan(tmp_path / "plan.toml", ["data.path="]).data.path is None
    assert parse_plan("data.path = 'own.csv'", where="p").data.path == "own.csv"  # a text lies in no folder


@pytest.mark.parametrize("text", ["data = 3", "[data]\npath = 3"])
def test_a_file_whose_data_is_no_table_or_path_is_refused_like_any_other(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(UsageError, match=r"plan\.toml: data.* = 3: should be a "):
        read_plan(tmp_path / "plan.toml")


def test_rule_4_the_digest_does_not_say_where_a_file_lies(tmp_path: Path) -> None:
    digests = set()
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "plan.toml").write_text("data.path = 'own.csv'\n" + CARD)
        digests.add(read_plan(tmp_path / name / "plan.toml").digest())
    assert len(digests) == 1


def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.toml: can't be read \(No such file or directory\)"):
        read_plan(tmp_path / "nothing.toml")
    with pytest.raises(UsageError, match=r"can't be read \(Is a directory\)"):
        read_plan(tmp_path)
    (tmp_path / "latin.toml").write_bytes('name = "\xe9"'.encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.toml: can't be read \(not UTF-8 text\)"):
        read_plan(tmp_path / "latin.toml")


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sed = 1", "sed: unknown key; did you mean seed? allowed: name, seed, data,"),
        ("zzz = 1", "zzz: unknown key; allowed: name, seed, data,"),
        ("[training]\nstepz = 1", "training.stepz: unknown key; did you mean steps? allowed: optimizer, learning_rate"),
        ("[trainin]\nsteps = 1", "trainin: unknown key; did you mean training? allowed: name"),
        (
            "[data.partition]\nkind = 'iid'\ncleints = 3",
            "data.partition.cleints: unknown key; did you mean clients? allowed: kind, clients",
        ),
        (
            "[data.partition]\nkind = 'iid'\nalpha = 3.0",
            "data.partition.alpha: unknown key; allowed: kind, clients",
        ),
        (
            CARD + "data.card.columns.y = {kind = 'numeric', low = 0, high = 1, hihg = 1}",
            "data.card.columns.y.hihg: unknown key; did you mean high? allowed: kind, low, high",
        ),
        (
            CARD + "data.card.clases = ['a']",
            "data.card.clases: unknown key; did you mean classes? allowed: classes, target, columns",
        ),
        ('[training]\n"step\\ns" = 1', 'training."step\\ns": unknown key; did you mean steps? allowed: optimizer'),
        (
            "[data.partition]\nclients = 3",
            "data.partition.kind: missing; allowed: 'iid', 'dirichlet', 'pathological', 'size-skewed', 'natural'",
        ),
        ("[federation.cohort]\nsize = 3", "federation.cohort.sampling: missing; allowed: 'all', 'fixed', 'poisson'"),
        (
            "[data.partition]\nkind = 'dirichlt'",
            "data.partition.kind = 'dirichlt': did you mean dirichlet? allowed: 'iid', 'dirichlet',",
        ),
        ("[training.schedule]\nkind = 3", "training.schedule.kind = 3: allowed: 'constant', 'cosine', 'step'"),
        (
            CARD + "data.card.columns.y = {kind = 'numbers'}",
            "data.card.columns.y.kind = 'numbers': did you mean numeric? allowed: 'numeric', 'categorical'",
        ),
        ("[data.partition]\nkind = 'natural'", "data.partition.column: missing, give it a value"),
        ("data.card = {}", "data.card.classes: missing, give it a value"),
        (
            "[training]\noptimizer = 'adamm'",
            "training.optimizer = 'adamm': did you mean adam? allowed: 'sgd', 'adam', 'adamw'",
        ),
        ("[federation]\nwire = 3", "federation.wire = 3: allowed: 'float32', 'float16', 'int8', 'top-k'"),
        ("[federation]\nwire = 'topk'", "federation.wire = 'topk': did you mean top-k? allowed: 'float32', 'float16'"),
        ("[federation]\nwire = 'top-k'\ntop_fraction = 0.0", "federation.top_fraction = 0.0: should be greater than 0"),
        ("[federation]\nwire = 'top-k'\ntop_fraction = 2", "federation.top_fraction = 2: should be less than or equal"),
        ("[federation]\nwire = 'top-k'", "federation: wire = 'top-k' needs top_fraction, the part of all values that"),
        (
            "[federation]\ntop_fraction = 0.1",
            "federation: top_fraction = 0.1 belongs to wire = 'top-k', not to 'float32'; remove it",
        ),
        (
            "[federation]\nwire = 'int8'\n[privacy]\nunit = 'client'\ntrust = 'central'\nepsilon = 1.0",
            "federation.wire = 'int8' changes each update after it was clipped, and privacy.trust = 'central' counts",
        ),
        (
            "[federation]\nstrategy = 'fedvag'",
            "federation.strategy = 'fedvag': did you mean fedavg? allowed: fedavg, fedavgm,",
        ),
        ("seed = true", "seed = True: should be a valid integer"),
        ("seed = -1", "seed = -1: should be greater than or equal to 0"),
        ("name = 1979-05-27", "name = datetime.date(1979, 5, 27): should be a valid string"),
        ("name = 'a/b'", "name = 'a/b': should match pattern"),
        ("[training]\nlearning_rate = nan", "training.learning_rate = nan: should be a finite number"),
        ("[training]\nlearning_rate = '1'", "training.learning_rate = '1': should be a valid number"),
        ("[training]\nbetas = [0.9, 1.0]", "training.betas.1 = 1.0: should be less than 1"),
        ("[training]\nbetas = [0.9]", "training.betas.1: missing, give it a value"),
        ("[training]\nbetas = [0.9, 0.9, 0.9]", "training.betas = [0.9, 0.9, 0.9]: should have at most 2 entries"),
        ("[evaluation]\nbaselines = 1", "evaluation.baselines = 1: should be a valid boolean"),
        ("training = 3", "training = 3: should be a table"),
        ("data.partition = 3", "data.partition = 3: should be a table"),
        ("data.card = 3", "data.card = 3: should be a table"),
        ("[federation]\nstrategy_options = 3", "federation.strategy_options = 3: should be a table"),
        (
            "[federation]\nstrategy_options = {eta = [1]}",
            "federation.strategy_options.eta = [1]: allowed: a finite number, a text, true or false",
        ),
        ("data.card = {classes = 'ab'}", "data.card.classes = 'ab': should be a list"),
        ("data.card = {classes = ['a']}", "data.card.classes = ['a']: should have at least 2 entries"),
        (
            CARD + "data.card.columns.'a.b' = {kind = 'numeric', low = 2, high = 1}",
            'data.card.columns."a.b": low = 2.0 must be below high = 1.0',
        ),
        ("[training]\nsteps = 1\nepochs = 1", "training: give steps or epochs, not both"),
        ("[federation]\nstrategy = 'fedprox'", "federation.strategy = 'fedprox' needs training.proximal_mu > 0"),
    ],
)
def test_an_error_names_the_key_its_value_and_what_is_allowed(text: str, expected: str) -> None:
    (error,) = errors(text)
    assert error.startswith("p.toml: " + expected), error
    assert error.count("did you mean") == expected.count("did you mean")


def test_each_thing_that_is_wrong_has_a_line_of_its_own() -> None:
    found = errors("seed = -1\nnmae = 1\n[training]\nsteps = 0\n[privacy]\nepsilon = inf\n")
    assert [line.split(":")[1].split(" =")[0].strip() for line in found] == [
        "seed",
        "training.steps",
        "privacy.epsilon",
        "nmae",
    ]


def test_a_long_value_is_cut() -> None:
    (error,) = errors(f'name = "{"/" * 500}"')
    assert len(error) < 160


@settings(deadline=None)
@given(st.text(max_size=20), st.text(max_size=20))
def test_a_strange_key_or_value_stays_on_one_line(key: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_from({"training": {f"x{key}": 1}, "privacy": {"trust": f"x{value}"}}, where="p")
    lines = str(caught.value).split("\n")
    assert len(lines) == 2
    assert all(line.startswith("p: ") for line in lines)


# --- overrides -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=3", ("seed",), 3),
        ("privacy.epsilon=3", ("privacy", "epsilon"), 3.0),
        (" privacy . epsilon = 2.5 ", ("privacy", "epsilon"), 2.5),
        ("evaluation.baselines=true", ("evaluation", "baselines"), True),
        ("training.betas=[0.5, 0.6]", ("training", "betas"), (0.5, 0.6)),
        ("model.name=vit", ("model", "name"), "vit"),
        ("model.name='vit'", ("model", "name"), "vit"),
        ('data.name="csv"', ("data", "name"), "csv"),
        ("data.path=/a b/c=d.csv", ("data", "path"), "/a b/c=d.csv"),
        ("data.path=C:\\data\\x.csv", ("data", "path"), "C:\\data\\x.csv"),
        ("data.path=a # b", ("data", "path"), "a # b"),
        ('data.path="3"', ("data", "path"), "3"),
        ("model.options.hidden=[3, 4]", ("model", "options", "hidden"), [3, 4]),
        ('model.options."a.b"=1', ("model", "options", "a.b"), 1),
        ("model.options={}", ("model", "options"), {}),
        ("federation.strategy_options.eta=1", ("federation", "strategy_options", "eta"), 1),
        ("data.partition.clients=20", ("data", "partition", "clients"), 20),
        ("data.partition={kind='iid', clients=3}", ("data", "partition", "clients"), 3),
        ("training.schedule.kind=step", ("training", "schedule", "kind"), "step"),
        ("federation.cohort.rate=0.3", ("federation", "cohort", "rate"), 0.3),
        ("data.card.columns.x.high=9", ("data", "card", "columns", "x", "high"), 9.0),
    ],
)
def test_an_override_sets_a_key_at_any_depth_to_a_typed_value(override: str, path: tuple[str, ...], value: Any) -> None:
    text = (
        "privacy.epsilon = 1\nfederation.cohort = {sampling = 'poisson'}\n"
        "data.partition = {kind = 'dirichlet'}\nmodel.options.hidden = [1]\n" + CARD
    )
    found: Any = parse_plan(text, where="p", overrides=[override])
    for key in path:
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == value
    assert type(found) is type(value)


def test_later_overrides_win_and_a_table_can_be_built_key_by_key() -> None:
    plan = parse_plan(
        "", where="p", overrides=["seed=1", "seed=2", "data.partition.kind=iid", "data.partition.clients=3"]
    )
    assert plan.seed == 2
    assert plan.data.partition.model_dump() == {"kind": "iid", "clients": 3}


def test_nothing_removes_a_key_or_a_table() -> None:
    text = "seed = 3\n[privacy]\nepsilon = 3.0\n[training]\nsteps = 5\n[data.partition]\nkind = 'iid'\n"
    plan = parse_plan(text, where="p", overrides=["training.steps=", "data.partition= ", "seed="])
    assert plan == Plan.model_validate({"privacy": {"epsilon": 3.0}})
    switched = parse_plan(text, where="p", overrides=["privacy.epsilon=", "privacy.noise_multiplier=1.5"])
    assert (switched.privacy.epsilon, switched.privacy.noise_multiplier) == (None, 1.5)


@pytest.mark.parametrize("override", ["privacy.budget=", "data.card.target=", "data.partition.alpha=", "nothing.here="])
def test_removing_what_is_not_there_changes_nothing(override: str) -> None:
    assert parse_plan("", where="p", overrides=[override]) == Plan()


@pytest.mark.parametrize("override", ["", "seed", "=3", ".=3", "a..b=3", "privacy.=3", ".seed=3", "a b=3", "[x]\na=3"])
def test_an_override_without_key_or_value_is_refused(override: str) -> None:
    (error,) = errors("", override)
    assert error.startswith("--set ")
    assert error.endswith(": give KEY=VALUE, e.g. --set privacy.epsilon=3")


def test_an_override_can_not_reach_into_a_value() -> None:
    assert errors("seed = 3", "seed.x=1") == ["--set seed.x=1: seed is not a table of the plan"]
    assert errors("seed = 3", "seed.x=") == ["--set seed.x=: seed is not a table of the plan"]


@pytest.mark.parametrize("override", ["privacy.epsilon=0", "privacy.epsilon=inf", "privacy.epsilon=1\nseed = 3"])
def test_an_overridden_value_is_checked_like_any_other(override: str) -> None:
    (error,) = errors("", override)
    assert error.startswith("p.toml: privacy.epsilon = ")


@pytest.mark.parametrize(("given_key", "computed"), [("epsilon", "noise_multiplier"), ("noise_multiplier", "epsilon")])
def test_an_override_of_a_resolved_plan_drops_the_number_that_was_computed(given_key: str, computed: str) -> None:
    text = f"{RESOLVED}'{given_key}'\n"
    assert getattr(parse_plan(text, where="p").privacy, computed) is not None  # alone it is kept, to be checked
    privacy = parse_plan(text, where="p", overrides=["federation.rounds=99"]).privacy
    assert getattr(privacy, computed) is None
    assert getattr(privacy, given_key) is not None
    assert privacy.calibrated_from is None


def test_an_override_may_change_the_number_that_was_given_in_a_resolved_plan() -> None:
    privacy = parse_plan(RESOLVED + "'epsilon'\n", where="p", overrides=["privacy.epsilon=2"]).privacy
    assert (privacy.epsilon, privacy.noise_multiplier) == (2.0, None)


def test_an_override_does_not_hide_a_wrong_key_of_the_file() -> None:
    assert errors(RESOLVED + "'nothing'\n", "seed=3")[0].startswith("p.toml: privacy.calibrated_from = 'nothing'")


# --- writing -------------------------------------------------------------------------------------------------------

names = st.text(max_size=12) | st.sampled_from(
    ["", " ", "a.b", "é", '"', "'", "\\", "#", "[x]", "=", "\n", "\x7f", "名"]
)
finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=5e-324, allow_infinity=False)
part = st.floats(0, 1, exclude_min=True, exclude_max=True)
count = st.integers(1, 2**31 - 1)
scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | st.text(max_size=12)
toml_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3), max_leaves=6
)


def table(optional: dict[str, st.SearchStrategy[Any]], **required: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(dict(required), optional=optional)


columns = st.one_of(
    st.tuples(finite, finite)
    .filter(lambda pair: pair[0] != pair[1])
    .map(lambda pair: {"kind": "numeric", "low": min(pair), "high": max(pair)}),
    table({}, kind=st.just("categorical"), values=st.lists(names, min_size=1, max_size=3)),
)
cards = table(
    {
        "target": names,
        "columns": st.dictionaries(names, columns, max_size=3),
        "missing": st.lists(names, max_size=3),
        "input_shape": st.lists(count, max_size=3),
        "mean": finite,
        "std": positive,
    },
    classes=st.lists(names, min_size=2, max_size=4),
)
partitions = st.one_of(
    table({"clients": count}, kind=st.just("iid")),
    table({"clients": count, "alpha": positive, "min_size": st.integers(0, 9)}, kind=st.just("dirichlet")),
    table({"clients": count, "classes_per_client": count}, kind=st.just("pathological")),
    table(
        {"clients": count, "growth": st.sampled_from(["linear", "square", "exponential"])}, kind=st.just("size-skewed")
    ),
    table({}, kind=st.just("natural"), column=names),
)
warmup = st.integers(0, 2**31 - 1)
schedules = st.one_of(
    table({"warmup_rounds": warmup}, kind=st.just("constant")),
    table({"warmup_rounds": warmup, "final_fraction": st.floats(0, 1)}, kind=st.just("cosine")),
    table({"warmup_rounds": warmup, "every": count, "factor": part}, kind=st.just("step")),
)
cohorts = st.one_of(
    table({}, sampling=st.just("all")),
    table({}, sampling=st.just("fixed"), size=st.just(1)),
    table({"rate": part}, sampling=st.just("poisson")),
)
privacies = st.one_of(
    table({"epsilon": positive}, trust=st.just("none")),
    st.fixed_dictionaries(
        {"delta": part},
        optional={
            "budget": positive,
            "clipping_norm": st.floats(1e-9, 1e9),
            "noise": st.sampled_from(["secret", "reproducible"]),
            "selection": st.sampled_from(["public", "charged", "uncharged"]),
        },
    ).flatmap(
        lambda common: st.sampled_from(
            [
                {**common, "epsilon": 2.5},
                {**common, "noise_multiplier": 0.7},
                {**common, "epsilon": 0.1, "noise_multiplier": 3, "calibrated_from": "epsilon"},
                {**common, "epsilon": 0.1, "noise_multiplier": 3, "calibrated_from": "noise_multiplier"},
                {**common, "unit": "client", "trust": "central", "epsilon": 1},
            ]
        )
    ),
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    privacy = draw(privacies)
    training = draw(
        table(
            {
                "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
                "learning_rate": positive,
                "momentum": part,
                "betas": st.tuples(part, part).map(list),
                "weight_decay": st.floats(0, allow_infinity=False),
                "schedule": schedules,
                "steps": count,
                "sample_rate": part,
                "max_physical_batch": count,
                "threads": count,
            },
            proximal_mu=st.floats(min_value=1e-3, max_value=9),
        )
    )
    strategies = MEAN_STRATEGIES if privacy.get("trust") == "central" else (*MEAN_STRATEGIES, *ROBUST_STRATEGIES)
    data = draw(
        table({"name": names, "path": names, "partition": partitions, "test_fraction": part, "card": cards})
    ) | draw(st.just({}) | table({}, person_column=names, max_rows_per_person=st.integers(1, 1000)))
    assume(data.get("partition", {}).get("column", "") != data.get("person_column"))  # else refused under privacy
    federation = draw(
        table(
            {
                "rounds": count,
                "cohort": cohorts,
                "strategy": st.sampled_from([*strategies, "my.own:Strategy"]),
                "strategy_options": st.dictionaries(names, scalars, max_size=3),
                "wire": st.sampled_from(["float32", "float16"]),
                "round_timeout": positive,
            }
        )
    )
    if privacy.get("trust") == "central" and "column" in data.get("partition", {}):  # which doesn't tell how many
        federation["population"] = draw(st.integers(1, 2**31 - 1))
    if privacy.get("trust") != "central" and draw(st.booleans()):
        federation |= draw(
            st.just({"wire": "int8"}) | st.fixed_dictionaries({"wire": st.just("top-k"), "top_fraction": part})
        )
    evaluation = draw(
        table(
            {
                "every": count,
                "metric": st.sampled_from(["accuracy", "loss"]),
                "target": finite,
                "patience": count,
                "baselines": st.booleans(),
            }
        )
    )
    return Plan.model_validate(
        {
            "name": draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]*", fullmatch=True)),
            "seed": draw(st.integers(0, 2**63 - 1)),
            "data": data,
            "model": draw(table({"name": names, "options": st.dictionaries(names, toml_values, max_size=3)})),
            "training": training,
            "privacy": privacy,
            "federation": federation,
            "evaluation": evaluation,
        }
    )


@given(plans())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_is_written_is_read_back_and_each_line_of_it_is_toml(plan: Plan) -> None:
    text = write_plan(plan)
    again = parse_plan(text, where="p")
    assert again == plan
    assert again.digest() == plan.digest()
    assert write_plan(again) == text
    for line in text.split("\n"):
        tomllib.loads(line)
        assert not line or line.startswith(("#", "[")) or "=" in line


@pytest.mark.parametrize("text", ["", "privacy = {trust = 'none'}\n" + CARD + "data.partition = {kind = 'iid'}\n"])
def test_a_written_plan_shows_every_key_with_its_meaning(text: str) -> None:
    plan = parse_plan(text, where="p")
    lines = write_plan(plan).split("\n")

    def look(section: Any) -> None:
        for key, field in type(section).model_fields.items():
            value = getattr(section, key)
            if hasattr(type(value), "model_fields"):
                look(value)
            elif isinstance(value, dict):
                assert any(field.description in line for line in lines), key
                for item in value.values():
                    look(item)
            else:
                begins = f"# {key} =  # " if value is None else f"{key} = "
                assert any(line.startswith(begins) and line.endswith(f"  # {field.description}") for line in lines), key

    look(plan)


def test_a_key_that_is_not_set_is_shown_as_a_comment_and_stays_unset() -> None:
    text = write_plan(Plan())
    assert "# noise_multiplier =  # Standard deviation" in text
    assert "# [model.options]  # Options of the network's own." in text
    assert "# [federation.strategy_options]  # " in text
    assert parse_plan(text, where="p").training.steps is None
