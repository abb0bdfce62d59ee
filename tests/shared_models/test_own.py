"""Networks of the user's own: named by plans, bound by whoever owns the process (rule 7)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from security.errors import UsageError
from shared_models import own, registry
from shared_models.example_form import ExampleForm
from shared_models.plan import Plan
from shared_models.resolve import resolve
from shared_models.running_statistics import check_no_running_statistics
from simulations.run import Settings, start_run

HERE = "tests.shared_models.own_network"
FILE = Path(__file__).with_name("own_network.py")
FORM = ExampleForm((1, 8, 8), 10)


@pytest.fixture(autouse=True)
def _unbound() -> Iterator[None]:
    yield
    own.bind({})


def plan(**model: object) -> Plan:
    return Plan.model_validate(
        {
            "model": {"name": "mine", **model},
            "data": {"partition": {"kind": "iid", "clients": 2}},
            "federation": {"rounds": 1},
            "training": {"steps": 2},
        }
    )


def refusal(models: dict[str, str], **model: object) -> str:
    def resolved() -> None:
        own.bind(models)
        resolve(plan(**model))

    with pytest.raises(UsageError) as caught:
        resolved()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_name_that_nobody_has_bound_is_unknown() -> None:
    assert "unknown model" in refusal({})


@pytest.mark.parametrize("reference", [f"{HERE}:build", f"{FILE}:build"])
def test_a_bound_name_is_a_network_like_any_other(reference: str) -> None:
    own.bind({"mine": reference})
    found = resolve(plan(options={"width": 4}))
    assert found.model.options == {"width": 4, "norm": "group"}
    one, again = (registry.build_for(found).state_dict() for _ in range(2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert registry.count_parameters(found) == sum(value.numel() for value in one.values())


def test_a_relative_path_begins_at_the_settings_folder() -> None:
    own.bind(own.references({"mine": "own_network.py:build"}, FILE.parent))
    assert own.bound() == {"mine": f"{FILE}:build"}
    resolve(plan())


def test_what_does_not_learn_is_pinned_and_compared(tmp_path: Path) -> None:
    def bound_to(base: float) -> None:
        path = tmp_path / f"base{base}.py"
        path.write_text(
            "from torch import nn\n"
            "def build(form):\n"
            "    body = nn.Linear(64, 8).requires_grad_(False)\n"
            f"    nn.init.constant_(body.weight, {base})\n"
            "    return nn.Sequential(nn.Flatten(), body, nn.Linear(8, form.classes))\n"
        )
        own.bind({"mine": f"{path}:build"})

    bound_to(1.0)
    ours = resolve(plan())
    assert ours.model.frozen is not None
    assert resolve(ours) == ours
    bound_to(-7.0)
    assert resolve(plan()).digest() != ours.digest()
    with pytest.raises(UsageError, match=r"model\.frozen = .*use the same weights on all machines"):
        resolve(ours)


def test_a_name_is_never_gone_while_it_is_bound_again() -> None:
    own.bind({"mine": f"{HERE}:build"})
    ended, gone = threading.Event(), []

    def look() -> None:
        while not ended.is_set():
            if "mine" not in own.bound():
                gone.append(1)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(20_000):
        own.bind({"mine": f"{HERE}:build"})
    ended.set()
    looking.join()
    assert not gone


def test_a_batch_norm_is_named_with_its_mend() -> None:
    assert refusal({"mine": f"{HERE}:build"}, options={"norm": "batch"}) == (
        "layer '1' (BatchNorm2d) mixes the examples of a batch; use GroupNorm"
    )


@pytest.mark.parametrize("privacy", [{"trust": "none"}, {"trust": "central", "unit": "client"}])
def test_running_statistics_are_refused_without_example_privacy_too(privacy: dict[str, str]) -> None:
    """They don't travel: the model would be judged and exported with a mean of 0 and a variance of 1."""
    own.bind({"mine": f"{HERE}:build"})
    batch = plan(options={"norm": "batch"}).model_dump()
    with pytest.raises(UsageError, match=r"layer '1' \(BatchNorm2d\) keeps running statistics, .*; use GroupNorm$"):
        resolve(Plan.model_validate({**batch, "privacy": {**batch["privacy"], **privacy}}))


def test_what_keeps_no_statistics_passes() -> None:
    kept = torch.nn.InstanceNorm2d(3, track_running_stats=True)
    with pytest.raises(UsageError, match=r"layer '0' \(InstanceNorm2d\).*; use track_running_stats=False$"):
        check_no_running_statistics(torch.nn.Sequential(kept))
    kept.eval()  # a frozen layer of a pretrained network
    check_no_running_statistics(torch.nn.Sequential(kept, torch.nn.InstanceNorm2d(3), torch.nn.GroupNorm(1, 3)))


@pytest.mark.parametrize(
    ("models", "model", "reason"),
    [
        ({"cnn": f"{HERE}:build"}, {"name": "cnn"}, "models.cnn: is one of Veil's own networks; bind another name"),
        ({"Mine": f"{HERE}:build"}, {}, "models.Mine: a name is of small letters, digits and hyphens"),
        ({"mine": "os.system"}, {}, "models.mine = 'os.system': give package.module:function, path/to/file.py"),
        ({"mine": "nowhere.at_all:build"}, {}, "ModuleNotFoundError: No module named 'nowhere'"),
        ({"mine": "/nowhere/model.py:build"}, {}, "models.mine: /nowhere/model.py is not there"),
        ({"mine": f"{HERE}:builds"}, {}, "AttributeError"),
        ({"mine": f"{HERE}:NUMBER"}, {}, "is no function"),
        ({"mine": f"{HERE}:nothing"}, {}, "gave a str, not a torch module"),
        ({"mine": f"{HERE}:fails"}, {}, f"{HERE}:fails failed: RuntimeError: no such form"),
        ({"mine": f"{HERE}:build"}, {"options": {"widht": 3}}, "model.options.widht: unknown option of 'mine'"),
        ({"mine": f"{HERE}:needs"}, {}, "model.options.width: 'mine' has no default for it; give it"),
    ],
)
def test_what_cannot_be_is_one_line(models: dict[str, str], model: dict[str, object], reason: str) -> None:
    assert reason in refusal(models, **model)


def test_a_function_of_any_options_takes_them() -> None:
    own.bind({"mine": f"{HERE}:anything"})
    assert resolve(plan(options={"whatever": 3})).model.options == {"whatever": 3}


def test_a_simulation_trains_it_privately_and_forgets_it(tmp_path: Path) -> None:
    settings = Settings(engine="inline", models={"mine": f"{FILE}:build"})
    folder, outcome = start_run(plan(), tmp_path / "run", settings)
    assert outcome.stopped is None
    assert folder.read_summary()["privacy"]["epsilon_max"] > 0
    with pytest.raises(UsageError, match="unknown model"):
        start_run(plan(), tmp_path / "again", Settings(engine="inline"))


@pytest.mark.ray
def test_rays_actors_know_it_too(ray_cluster: Path, tmp_path: Path) -> None:
    settings = Settings(engine="ray", workers=1, models={"mine": f"{FILE}:build"})
    public = plan().model_copy(update={"privacy": plan().privacy.model_copy(update={"noise": "reproducible"})})
    folder, _ = start_run(public, tmp_path / "ray", settings)
    inline, _ = start_run(public, tmp_path / "inline", Settings(engine="inline", models={"mine": f"{FILE}:build"}))
    assert folder.model.read_bytes() == inline.model.read_bytes()
