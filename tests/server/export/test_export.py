"""A run's model in other forms: each computes what the network in torch does, and says what it was made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from security.errors import UsageError
from server.export.export import export_run, trained_network
from server.export.formats import FILES, Format, onnx_session, runner, write
from server.export.inputs import Inputs
from server.export.model_card import model_card
from server.export.pruning import pruned
from server.export.served import examples_for, served
from server.export.serving import Predictor, listening, service
from server.run_folder import RunFolder
from shared_models.plan import Plan
from shared_models.registry import build_for
from simulations.run import Settings, start_run
from simulations.scenarios import find_plan

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    overrides = ("model.name=mlp", "federation.rounds=2", "data.partition.clients=3", "training.steps=3")
    folder, _ = start_run(
        find_plan("digits", overrides), tmp_path_factory.mktemp("run") / "run", Settings(engine="inline")
    )
    return folder


@pytest.mark.parametrize("format_", list(FILES))
def test_each_form_computes_what_torch_does(run: RunFolder, tmp_path: Path, format_: Format) -> None:
    done = export_run(run, format_, out=tmp_path / "there")
    assert done.path.name == FILES[format_]
    assert done.checked.largest_difference < 1e-5
    assert done.checked.same_guess == 1
    assert done.checked.bytes == done.path.stat().st_size
    facts = json.loads((tmp_path / "there" / "check.json").read_text())
    assert facts["largest_difference"] == done.checked.largest_difference
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == sorted(
        [FILES[format_], "MODEL_CARD.md", "check.json", "inputs.json"]
    )


def test_an_exported_model_takes_raw_examples_in_any_number(run: RunFolder, tmp_path: Path) -> None:
    """Pixels from 0 to 16, as the digits have them: the card's normalisation is inside."""
    from sklearn.datasets import load_digits

    session = onnx_session(export_run(run, "onnx", out=tmp_path).path)
    pixels = load_digits().images[:, None].astype(np.float32)
    network = trained_network(run)
    with torch.no_grad():
        expected = network((torch.from_numpy(pixels) - 8) / 8).numpy()
    for n in (1, 7, len(pixels)):
        found = session.run(None, {"inputs": pixels[:n]})[0]
        assert np.allclose(found, expected[:n], rtol=1e-4, atol=1e-5)


def test_eight_bits_are_smaller_and_nearly_the_same(run: RunFolder, tmp_path: Path) -> None:
    whole, small = (export_run(run, "onnx", out=tmp_path / str(q), quantise=q) for q in (False, True))
    assert small.checked.bytes < whole.checked.bytes
    assert 0 < small.checked.largest_difference < 0.1
    assert small.checked.same_guess > 0.9


def test_pruning_sets_the_smallest_weights_to_zero_over_all_layers_but_each_keeps_some(
    run: RunFolder, tmp_path: Path
) -> None:
    """A layer of small weights only, as a new head has, isn't lost."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        for layer, size in zip(model, (0.001, 1.0), strict=True):
            layer.weight.copy_(size * torch.arange(1.0, 17.0).reshape(4, 4))
    assert pruned(model, 0.5) == 0.5
    small, large = (layer.weight.detach().flatten() for layer in model)
    assert not small[:12].any()  # it keeps a quarter, half of what is kept over all
    assert torch.equal(small[12:], 0.001 * torch.arange(13.0, 17.0))
    assert not large[:4].any()
    assert torch.equal(large[4:], torch.arange(5.0, 17.0))
    model[0].weight.data.zero_()  # a layer that has learnt nothing
    assert pruned(model, 0.9) == pytest.approx(0.9, abs=0.04)
    done = export_run(run, "onnx", out=tmp_path, prune=0.3)
    assert done.zeros == pytest.approx(0.3, abs=0.01)
    assert done.checked.largest_difference > 0


@pytest.mark.parametrize(
    ("data", "model", "options"),
    [
        ({"name": "watch"}, "recurrent", {"hidden": 6, "bidirectional": True}),
        ({"name": "sentiment", "text": {"vocabulary": 50, "places": 8}}, "transformer", {"dim": 8, "heads": 2}),
        (
            {"name": "shakespeare", "text": {"tokens": "characters", "places": 9}},
            "recurrent",
            {"cell": "gru", "hidden": 5},
        ),
    ],
)
def test_sequences_are_exported_too(
    tmp_path: Path, data: dict[str, object], model: str, options: dict[str, object]
) -> None:
    """Also layers that were made for private training, and texts with padding."""
    plan = Plan.model_validate(
        {
            "data": {**data, "partition": {"kind": "iid", "clients": 2}},
            "model": {"name": model, "options": options},
            "privacy": {"trust": "none"},
        }
    )
    network, x = build_for(plan).eval(), examples_for(plan, 16)
    whole = served(plan, network)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(whole(x), expected, rtol=1e-4, atol=1e-5)
    write(whole, x[:2], "onnx", tmp_path / "model.onnx", quantise=False)
    found = runner("onnx", tmp_path / "model.onnx", whole)(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_card_says_what_was_promised_and_what_was_not(run: RunFolder, tmp_path: Path) -> None:
    export_run(run, "safetensors", out=tmp_path)
    text = (tmp_path / "MODEL_CARD.md").read_text()
    summary = run.read_summary()
    assert summary["plan_digest"][:16] in text
    assert f"epsilon {summary['privacy']['epsilon_max']:.4g} at delta 1e-05" in text
    assert "**no claim**" in text
    assert "simulated, not a claim" in text
    assert f"accuracy: {summary['final']['accuracy']:.4g}" in text
    for remark in (*summary["privacy"]["assumptions"], *summary["privacy"]["disclosed"]):
        assert remark["text"] in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format_": "torchscript", "quantise": True}, "--quantise int8: not for --format torchscript; allowed: onnx"),
        ({"format_": "safetensors", "prune": 1.0}, "--prune 1.0: a part between 0 and 1"),
    ],
)
def test_what_cannot_be_is_one_line(run: RunFolder, tmp_path: Path, options: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        export_run(run, out=tmp_path, **options)  # type: ignore[arg-type]


def test_no_run_no_model_and_no_room_are_one_line(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plan\.toml"):
        export_run(RunFolder(tmp_path), "onnx")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written"):
        export_run(run, "safetensors", out=tmp_path / "file" / "deeper")


# --- served ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def predictor(run: RunFolder) -> Predictor:
    done = export_run(run, "onnx")
    return Predictor.open(run.read_plan(), done.path.parent)


def test_the_service_answers_checks_and_describes_itself(predictor: Predictor, run: RunFolder) -> None:
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    client = TestClient(service(predictor))
    assert client.get("/health").json() == {"status": "ok", "plan": run.read_plan().digest()}
    image = np.full((1, 8, 8), 3.0)
    answer = client.post("/predict", json={"inputs": [image.tolist(), (2 * image).tolist()]})
    assert answer.status_code == 200
    first, second = answer.json()["outputs"]
    assert sum(first["probabilities"].values()) == pytest.approx(1)
    assert first["class"] == max(first["probabilities"], key=first["probabilities"].__getitem__)
    assert first != second
    network = trained_network(run)
    with torch.no_grad():
        expected = torch.softmax(network((torch.from_numpy(image[None]).float() - 8) / 8), 1)[0]
    assert list(first["probabilities"].values()) == pytest.approx(expected.tolist(), rel=1e-4)
    schema = client.get("/openapi.json").json()
    assert "/predict" in schema["paths"]
    assert "[1, 8, 8]" in json.dumps(schema)
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({"inputs": [[[1.0]]]}, "inputs[0]: has shape (1, 1), should have (1, 8, 8)"),
        ({"inputs": []}, "inputs: List should have at least 1 item"),
        ({"inputs": [0] * 300}, "inputs: List should have at most 256 items"),
        ({"imputs": []}, "inputs: Field required"),
        ({"inputs": [0], "Jane Doe": 1}, "body: Extra inputs are not permitted"),
        ({}, "inputs: Field required"),
    ],
)
def test_a_wrong_question_is_told_without_being_repeated(
    predictor: Predictor, body: dict[str, object], detail: str
) -> None:
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    answer = TestClient(service(predictor)).post("/predict", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(detail)
    assert set(answer.json()) == {"detail"}
    assert "Jane" not in answer.text


def test_a_body_that_is_too_long_is_refused_before_it_is_read(predictor: Predictor) -> None:
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    client = TestClient(service(predictor))
    assert client.post("/predict", content=bytes(17 << 20)).status_code == 413
    assert client.post("/predict", content=iter([b"{", b"}"])).status_code == 411


def test_a_model_that_was_not_exported_is_told(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="isn't there; write it first: veil export RUN"):
        Predictor.open(run.read_plan(), tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is not an ONNX model that can be run"):
        Predictor.open(run.read_plan(), tmp_path)


def test_a_language_model_says_the_next_token() -> None:
    plan = Plan.model_validate(
        {
            "data": {
                "name": "shakespeare",
                "text": {"tokens": "characters", "places": 4},
                "partition": {"kind": "iid"},
            },
            "model": {"name": "recurrent"},
        }
    )

    class Session:
        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            x = given["inputs"]
            logits = np.zeros((*x.shape, 98))
            for row in range(len(x)):
                for place in range(x.shape[1]):
                    logits[row, place, (int(x[row, place]) + 1) % 98] = 9.0
            return [logits]

    answers = Predictor(plan, Inputs.of(plan), Session()).answers(["ab", "abcdefg"])
    # After the last letter comes what follows its number, also of a text that is longer than the model's.
    assert [one["class"] for one in answers] == ["c", "h"]


def test_the_card_is_of_the_model_that_was_written(run: RunFolder, tmp_path: Path) -> None:
    """Of the best model, not of the last, and of what was done to it."""
    summary = run.read_summary()
    summary["best"] = {"round": 1, "metric": "accuracy", "value": 0.1234}
    text = model_card(run.read_plan(), summary, best=True)
    assert "the model of round 1" in text
    assert "- accuracy: 0.1234" in text
    assert f"{summary['final']['loss']:.4g}" not in text
    assert "changed after training" not in text
    export_run(run, "onnx", out=tmp_path, quantise=True, prune=0.3)
    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert "changed after training: 30% of the weights set to zero, weights as eight-bit integers" in text
    assert "figures are of the network before it was changed" in text


def test_a_model_of_another_plans_run_is_not_served(predictor: Predictor, run: RunFolder) -> None:
    plan = run.read_plan()
    other = plan.model_copy(update={"seed": plan.seed + 1})
    with pytest.raises(UsageError, match="is of another plan's run"):
        Predictor.open(other, run.path / "export")


def test_an_address_that_is_taken_or_none_is_one_line() -> None:
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"--port {port}: can't listen there"):
            listening("127.0.0.1", port)
    with pytest.raises(UsageError, match=r"--host 300\.1\.1\.1"):
        listening("300.1.1.1", 0)


def test_what_fails_inside_tells_and_logs_nothing_of_a_question(
    predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("httpx")
    from fastapi.testclient import TestClient

    class Broken:
        def run(self, _: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            raise RuntimeError(f"secret {given['inputs'].sum()}")

    broken = service(Predictor(predictor.plan, predictor.inputs, Broken()))
    answer = TestClient(broken).post("/predict", json={"inputs": [np.full((1, 8, 8), 3.0).tolist()]})
    assert (answer.status_code, answer.json()) == (500, {"detail": "the service failed on this request"})
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text
