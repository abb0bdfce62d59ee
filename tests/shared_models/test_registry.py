"""The registry, and what every registered network owes: a new entry is tested here without a line more."""

from __future__ import annotations

import copy
import tomllib

import pytest
import tomli_w
import torch
from opacus.grad_sample import GradSampleModule
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from security.errors import UsageError
from shared_models import registry
from shared_models.cards import KNOWN
from shared_models.example_form import ExampleForm
from shared_models.plan import Plan
from shared_models.private_trainable import check_private_trainable
from tests.shared_models.zoo import NAMES, PRETRAINED, examples, forms, labels

WITH_DROPOUT = [name for name in NAMES if "dropout" in registry.default_options(name)]
FORMS = [pytest.param(name, form, id=f"{name}-{form.shape}") for name in NAMES for form in forms(name)]
IMAGES = "takes images (channels, height, width) with sides from 8 to 64"
OF_IMAGES = ("cnn", "convnet", "inception", "resnet", "vit")


def error_of(call: object, *arguments: object, **keywords: object) -> str:
    assert callable(call)
    with pytest.raises(UsageError) as caught:
        call(*arguments, **keywords)
    text = str(caught.value)
    assert "\n" not in text
    return text


def new(name: str, form: ExampleForm | None = None, *, seed: int = 7, **options: object) -> nn.Module:
    return registry.build(name, options, form=forms(name)[0] if form is None else form, seed=seed)


# --- names and options ------------------------------------------------------------------------------------------


BIND = "one's own is bound by --model, or in site.toml and server.toml"
KNOWN_NAMES = "cnn, cnn1d, convnet, inception, linear, minilm, mlp, recurrent, resnet, transformer, vit"


def test_names_are_sorted_and_hold_all_networks() -> None:
    assert ", ".join(registry.names()) == KNOWN_NAMES
    assert sorted((*NAMES, *PRETRAINED)) == list(registry.names())


@pytest.mark.parametrize("name", NAMES)
def test_a_factory_says_its_name_and_what_it_is_in_one_line(name: str) -> None:
    factory = registry.factory(name)
    assert factory.name == name
    assert factory.summary
    assert "\n" not in factory.summary


def test_an_unknown_model_is_refused_with_the_known_ones_and_the_nearest() -> None:
    assert (
        error_of(registry.check_options, "resnt", {})
        == f"model.name = 'resnt': unknown model; did you mean resnet? allowed: {KNOWN_NAMES}; {BIND}"
    )
    assert error_of(registry.default_options, "lstm-xl") == (
        f"model.name = 'lstm-xl': unknown model; allowed: {KNOWN_NAMES}; {BIND}"
    )
    assert "unknown model" in error_of(new, "gpt", ExampleForm((5,), 2))


def test_left_out_options_get_their_defaults() -> None:
    assert registry.default_options("mlp") == {"hidden": [64, 32], "activation": "relu", "dropout": 0.0}
    assert registry.check_options("mlp", {"hidden": [5]}) == {"hidden": [5], "activation": "relu", "dropout": 0.0}


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_being_written_as_toml_and_checked_again(name: str) -> None:
    options = registry.default_options(name)
    assert tomllib.loads(tomli_w.dumps(options)) == options
    assert registry.check_options(name, options) == options


def test_a_tuple_is_as_good_as_a_list_and_a_whole_number_is_a_number() -> None:
    checked = registry.check_options("mlp", {"hidden": (5, 4), "dropout": 0})
    assert checked["hidden"] == [5, 4]
    assert isinstance(checked["dropout"], float)


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    assert error_of(registry.check_options, "mlp", {"hiden": [3]}) == (
        "model.options.hiden: unknown option of 'mlp'; did you mean hidden? allowed: hidden, activation, dropout"
    )


WHOLE_LIST = "allowed: a list, each entry a whole number"


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        # wrong types
        ("mlp", "hidden", "64", f"= '64': {WHOLE_LIST}"),
        ("mlp", "hidden", 64, f"= 64: {WHOLE_LIST}"),
        ("mlp", "hidden", [64, 1.5], f"= [64, 1.5]: {WHOLE_LIST}"),
        ("mlp", "hidden", [True], f"= [True]: {WHOLE_LIST}"),
        ("mlp", "activation", "gelu", "= 'gelu': allowed: 'relu', 'tanh'"),
        ("mlp", "activation", [], "= []: allowed: 'relu', 'tanh'"),
        ("mlp", "dropout", "0.1", "= '0.1': allowed: a finite number"),
        ("mlp", "dropout", float("nan"), "= nan: allowed: a finite number"),
        ("mlp", "dropout", False, "= False: allowed: a finite number"),
        ("cnn", "hidden", True, "= True: allowed: a whole number"),
        ("vit", "dim", 64.0, "= 64.0: allowed: a whole number"),
        # impossible values
        ("mlp", "hidden", [0], "= [0]: allowed: at most 16 widths from 1 to 4096"),
        ("mlp", "hidden", [1] * 17, f"= {[1] * 17}: allowed: at most 16 widths from 1 to 4096"),
        ("mlp", "dropout", 1, "= 1: allowed: from 0 to below 1"),
        ("cnn", "channels", [], "= []: allowed: 1 to 8 counts from 1 to 1024"),
        ("cnn", "hidden", 0, "= 0: allowed: from 1 to 4096"),
        ("cnn", "groups", 3, "= 3: allowed: a common divisor of channels [16, 32]"),
        ("cnn", "channels", [6], "groups = 4: allowed: a common divisor of channels [6]"),
        ("convnet", "channels", [], "= []: allowed: 1 to 8 counts from 1 to 1024"),
        ("convnet", "hidden", 0, "= 0: allowed: from 1 to 4096"),
        ("convnet", "dropout", 1.0, "= 1.0: allowed: from 0 to below 1"),
        ("convnet", "hidden_dropout", -0.5, "= -0.5: allowed: from 0 to below 1"),
        ("resnet", "width", 0, "= 0: allowed: from 1 to 256"),
        ("resnet", "blocks", [1, 0], "= [1, 0]: allowed: 1 to 4 counts from 1 to 32"),
        ("resnet", "groups", 0, "= 0: allowed: a divisor of width 16"),
        ("vit", "patch", -1, "= -1: allowed: from 1 to 64, or 0 to choose one that fits"),
        ("vit", "dim", 0, "= 0: allowed: from 1 to 1024"),
        ("vit", "depth", 0, "= 0: allowed: from 1 to 32"),
        ("vit", "heads", 5, "= 5: allowed: a divisor of dim 64"),
        ("vit", "mlp_ratio", 9, "= 9: allowed: from 1 to 8"),
        ("vit", "dropout", -0.1, "= -0.1: allowed: from 0 to below 1"),
    ],
)
def test_a_wrong_option_is_refused_with_its_path_the_value_and_what_is_allowed(
    name: str, key: str, value: object, reason: str
) -> None:
    expected = f"model.options.{key} {reason}" if reason.startswith("=") else f"model.options.{reason}"
    assert error_of(registry.check_options, name, {key: value}) == expected
    assert error_of(new, name, **{key: value}) == expected


def test_a_long_value_is_cut_in_the_error() -> None:
    text = error_of(registry.check_options, "mlp", {"activation": "x" * 1000})
    assert len(text) < 130
    assert "..." in text


# --- building ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_logits_have_a_row_an_example_and_a_column_a_class(name: str, form: ExampleForm) -> None:
    model = new(name, form)
    assert model.training
    for batch in (0, 1, 3):
        logits = model(examples(form, batch))
        assert logits.shape == (batch, *(form.shape if form.at_each_place else ()), form.classes)
        assert logits.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits_whatever_the_global_random_state(name: str) -> None:
    torch.manual_seed(1)
    one = new(name, seed=3).state_dict()
    torch.manual_seed(2)
    other = new(name, seed=3).state_dict()
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "linear"])  # which begins at zero
def test_another_seed_gives_other_weights(name: str) -> None:
    one, other = dict(new(name, seed=3).named_parameters()), dict(new(name, seed=4).named_parameters())
    # Norm layers start at one and zero whatever the seed; every matrix and kernel is drawn.
    drawn = [key for key, value in one.items() if value.dim() > 1]
    assert drawn
    assert not any(torch.equal(one[key], other[key]) for key in drawn)


@pytest.mark.parametrize("name", NAMES)
def test_the_global_random_state_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    new(name)
    assert torch.equal(torch.get_rng_state(), before)
    error_of(new, "cnn", ExampleForm((5,), 2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_made_on_the_cpu_whatever_the_default_device(name: str) -> None:
    with torch.device("meta"):
        elsewhere = new(name).state_dict()
    here = new(name).state_dict()
    assert all(torch.equal(elsewhere[key], here[key]) for key in here)


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_dropout_acts_in_training_only(name: str) -> None:
    model, inputs = new(name, dropout=0.5), examples(forms(name)[0], 5)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_a_plans_network_fits_its_data_and_has_its_options_and_seed() -> None:
    document = {"data": {"name": "heart-disease"}, "model": {"name": "mlp", "options": {"hidden": [3]}}, "seed": 5}
    built = registry.build_for(Plan.model_validate(document)).state_dict()
    card = KNOWN["heart-disease"]
    wanted = new("mlp", card.form, seed=5, hidden=[3]).state_dict()
    assert list(built) == list(wanted)
    assert all(torch.equal(built[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("shape", [(64,), (8, 8), (1, 7, 8), (1, 8, 65), (1, 1, 8, 8)])
def test_a_wrong_input_shape_is_refused_with_the_shapes_the_model_takes(name: str, shape: tuple[int, ...]) -> None:
    assert error_of(new, name, ExampleForm(shape, 4)) == (
        f"model.name = {name!r}: {IMAGES}; the data's examples have shape {shape}"
    )


SEQUENCES = "takes texts (places,) of tokens, or signals (channels, times), of at most 2048"


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("cnn1d", (7,), "takes signals (channels, times) of 8 to 65536 times"),
        ("cnn1d", (3, 7), "takes signals (channels, times) of 8 to 65536 times"),
        ("recurrent", (1, 8, 8), SEQUENCES),
        ("recurrent", (2, 2049), SEQUENCES),
        ("transformer", (30,), SEQUENCES),
        ("transformer", (2, 2049), SEQUENCES),
    ],
)
def test_a_network_of_sequences_refuses_what_is_none(name: str, shape: tuple[int, ...], reason: str) -> None:
    expected = f"model.name = {name!r}: {reason}; the data's examples have shape {shape}"
    assert error_of(new, name, ExampleForm(shape, 4)) == expected


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"recurrent", "transformer"}))
def test_a_network_of_values_refuses_tokens(name: str) -> None:
    assert error_of(new, name, ExampleForm((20,), 2, vocabulary=50)) == (
        f"model.name = {name!r}: takes values, no tokens; the data's examples have 50 tokens and shape (20,)"
    )


def test_a_language_model_sees_no_later_token() -> None:
    form = ExampleForm((9,), 20, vocabulary=20, at_each_place=True)
    assert error_of(new, "recurrent", form, bidirectional=True) == (
        "model.options.bidirectional = True: allowed: false, where the next token is to be predicted"
    )
    for name in ("recurrent", "transformer"):
        model, some = new(name, form).eval(), examples(form, 3)
        other = some.clone()
        other[:, 5:] = examples(form, 3, seed=99)[:, 5:]
        assert not torch.equal(some, other)
        with torch.no_grad():
            one, two = model(some), model(other)
        torch.testing.assert_close(one[:, :5], two[:, :5], rtol=0, atol=1e-6)
        assert not torch.allclose(one[:, 5:], two[:, 5:])


@pytest.mark.parametrize("name", ["recurrent", "transformer"])
def test_padding_at_the_end_of_a_text_moves_its_logits_no_more_than_its_states(name: str) -> None:
    """A text's own places alone are judged: of the transformer, padding changes nothing at all."""
    short, long = (ExampleForm((places,), 3, vocabulary=20) for places in (6, 10))
    model = new(name, long).eval()
    text = examples(short, 4)
    padded = torch.cat([text, torch.zeros(4, 4)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(padded), model(text), rtol=0, atol=1e-5)
        assert model(torch.zeros(2, 10)).isfinite().all()  # nothing but padding


# --- private training -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_network_passes_the_private_training_check(name: str, form: ExampleForm) -> None:
    if form.shape != (1, 64, 64):  # nothing new, and slow
        check_private_trainable(new(name, form), form)


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_networks_with_dropout_pass_the_private_training_check(name: str) -> None:
    check_private_trainable(new(name, dropout=0.5), forms(name)[0])


def brute_force_gradients(model: nn.Module, inputs: torch.Tensor, answers: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients (n, *parameter), one example after the other, each alone."""
    parameters = dict(model.named_parameters())
    rows = [
        torch.autograd.grad(
            functional.cross_entropy(model(inputs[i : i + 1]), answers[i : i + 1]), list(parameters.values())
        )
        for i in range(len(inputs))
    ]
    return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}


OF_OPACUS = [name for name in NAMES if name != "recurrent"]  # whose layers Opacus doesn't know


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", OF_OPACUS)
def test_opacus_per_example_gradients_equal_one_example_at_a_time(name: str) -> None:
    model = new(name).double()
    form = forms(name)[0]
    inputs, answers = examples(form, 5, dtype=torch.float64), labels(form, 5)
    expected = brute_force_gradients(copy.deepcopy(model), inputs, answers)

    hooked = GradSampleModule(model, loss_reduction="sum")
    functional.cross_entropy(hooked(inputs), answers, reduction="sum").backward()

    for key, parameter in model.named_parameters():
        wanted, found = expected[key].flatten(1), parameter.grad_sample.flatten(1)
        norms = wanted.norm(dim=1)
        assert (norms > 0).all(), f"{key} gets no gradient from some example"
        assert ((found - wanted).norm(dim=1) <= 1e-10 * norms).all(), key


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", OF_OPACUS)
def test_a_poisson_sample_may_be_empty(name: str) -> None:
    hooked = GradSampleModule(new(name), loss_reduction="sum")
    logits = hooked(examples(forms(name)[0], 0))
    functional.cross_entropy(logits, torch.zeros(0, dtype=torch.long), reduction="sum").backward()
    assert all(not parameter.grad.any() for parameter in hooked.parameters())


# --- learning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "accuracy"),
    [
        ("cnn", 200, 0.95),
        ("convnet", 200, 0.95),
        ("inception", 200, 0.95),
        ("mlp", 500, 0.93),
        ("resnet", 100, 0.95),
        ("vit", 400, 0.93),
    ],
)
def test_a_short_training_recognises_digits(name: str, steps: int, accuracy: float) -> None:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    answers = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(answers), generator=generator)
    train, test = order[:1347], order[1347:]

    model = new(name, ExampleForm((1, 8, 8), 10), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (64,), generator=generator)]
        optimizer.zero_grad()
        functional.cross_entropy(model(images[batch]), answers[batch]).backward()
        optimizer.step()
        schedule.step()

    with torch.no_grad():
        predicted = model.eval()(images[test]).argmax(dim=1)
    assert (predicted == answers[test]).double().mean() >= accuracy


DATA = {"cnn1d": "watch", "recurrent": "shakespeare", "transformer": "sentiment"}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_counted_without_making_the_network(name: str) -> None:
    data = {"name": DATA.get(name, "digits"), "partition": {"kind": "iid"}}
    plan = Plan.model_validate({"data": data, "model": {"name": name}})
    state = torch.get_rng_state()
    counted = registry.count_parameters(plan)
    assert torch.equal(torch.get_rng_state(), state)
    assert counted == sum(parameter.numel() for parameter in registry.build_for(plan).parameters())


@pytest.mark.parametrize(
    ("shape", "hidden", "expected"),
    [
        ([2**14, 2**14], [4096] * 16, 4096 * (2**28 + 1) + 15 * 4096 * 4097 + 2 * 4097),  # 4 TB, in no time
        ([2**30, 2**30], [4], None),
        ([2**20, 2**20, 2**20, 2**20], [4], None),
    ],
)
def test_a_strangers_network_may_have_any_size(shape: list[int], hidden: list[int], expected: int | None) -> None:
    card = {"classes": ["a", "b"], "input_shape": shape}
    model = {"name": "mlp", "options": {"hidden": hidden}}
    plan = Plan.model_validate({"data": {"name": "npz", "card": card}, "model": model})
    if expected is None:
        with pytest.raises(UsageError, match="too large for examples of shape"):
            registry.count_parameters(plan)
    else:
        assert registry.count_parameters(plan) == expected
