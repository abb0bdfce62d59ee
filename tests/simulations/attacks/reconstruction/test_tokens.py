"""Words from the rows of an embedding: all of them without protection, none with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from security.errors import UsageError
from simulations.attacks.reconstruction.overheard import Round, play_round
from simulations.attacks.reconstruction.seen import Options, Seen, attack_round, check_attackable
from simulations.attacks.reconstruction.tokens import (
    TokenScores,
    embedding_of,
    most_frequent,
    token_scores,
    tokens_seen,
)
from tests.simulations.attacks.reconstruction.plans import LOCAL, SUM, one_round

NETWORKS = {
    "recurrent": ("model.name=recurrent", "model.options={hidden=16,embedding=8}"),
    "transformer": ("model.name=transformer", "model.options={dim=16,depth=1,heads=2}"),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 short texts of 300 words, drawn at random."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("texts") / "texts.csv"
    rows = [
        f"{'good' if number % 2 else 'bad'},{' '.join(f'word{word}' for word in generator.integers(300, size=6))}"
        for number in range(200)
    ]
    path.write_text("mood,said\n" + "\n".join(rows) + "\n")
    return path


def played(path: Path, *overrides: str, cohort: int = 3) -> Round:
    card = "data.card={classes=['bad','good'],target='mood',text='said'}"
    return play_round(
        one_round(
            "data.name=csv",
            f"data.path={path}",
            card,
            "data.test_fraction=0.5",
            "data.text={tokens='words',vocabulary=2000,places=8}",
            "data.partition={kind='iid',clients=40}",
            *overrides,
            images=4,
            cohort=cohort,
        )
    )


def seen_of(round_: Round) -> Seen:
    return attack_round(round_, Options())[0]


@pytest.mark.parametrize("network", NETWORKS)
def test_without_protection_every_word_is_seen_and_no_other(texts: Path, network: str) -> None:
    seen = seen_of(played(texts, *NETWORKS[network]))
    assert seen.tokens is not None
    assert seen.tokens.there > 30
    assert (seen.tokens.precision, seen.tokens.recall) == (1.0, 1.0)


@pytest.mark.parametrize("decay", [1e-4, 1e-2])
@pytest.mark.parametrize("steps", [("training.steps=1",), ("training.steps=3", "training.momentum=0.9")])
def test_weight_decay_hides_no_word(texts: Path, decay: float, steps: tuple[str, ...]) -> None:
    seen = seen_of(played(texts, *NETWORKS["recurrent"], *steps, f"training.weight_decay={decay}"))
    assert seen.tokens is not None
    assert (seen.tokens.precision, seen.tokens.recall) == (1.0, 1.0)


@pytest.mark.parametrize(
    "overrides",
    [
        ("training.optimizer=adam", "training.weight_decay=0.01"),
        (*LOCAL, "privacy.epsilon=8", "training.optimizer=adamw"),
        (*SUM, "privacy.epsilon=8", "federation.strategy=fedadam"),
    ],
)
def test_what_moves_all_words_alike_is_refused(overrides: tuple[str, ...]) -> None:
    texts = ("data.name=sentences", "data.text={vocabulary=2000,places=8}", *NETWORKS["recurrent"])
    with pytest.raises(UsageError, match="attack the plan with"):
        check_attackable(one_round(*texts, *overrides, cohort=20))


@pytest.mark.parametrize("protection", [(*LOCAL, "privacy.epsilon=8"), (*SUM, "privacy.epsilon=8")])
def test_with_noise_words_are_lost_in_it(texts: Path, protection: tuple[str, ...]) -> None:
    seen = seen_of(played(texts, *NETWORKS["recurrent"], *protection, cohort=20))
    assert seen.tokens is not None
    assert seen.tokens.recall is not None
    assert seen.tokens.recall < 0.1


def test_noise_alone_names_about_one_word() -> None:
    # 200 times Poisson of mean 1: over 300 or under 100 in less than one of 10^9 cases.
    plan = one_round("data.name=sentences", "data.text={vocabulary=2000,places=8}", *NETWORKS["recurrent"])
    generator = np.random.default_rng(1)
    name = embedding_of(plan)
    start = {name: generator.normal(size=(2000, 8)).astype(np.float32)}
    found = sum(
        len(tokens_seen(plan, start, {name: generator.normal(scale=0.3, size=(2000, 8)).astype(np.float32)}))
        for _ in range(200)
    )
    assert 100 < found < 300


def test_a_row_that_stands_out_of_noise_is_found() -> None:
    plan = one_round("data.name=sentences", "data.text={vocabulary=2000,places=8}", *NETWORKS["recurrent"])
    rows = np.random.default_rng(2).normal(size=(2000, 8)).astype(np.float32)
    rows[[5, 77]] += 6.0
    found = tokens_seen(plan, {embedding_of(plan): np.ones_like(rows)}, {embedding_of(plan): rows})
    assert {5, 77} <= found
    assert len(found) < 10


def test_padding_is_no_word() -> None:
    plan = one_round("data.name=sentences", "data.text={vocabulary=2000,places=8}", *NETWORKS["recurrent"])
    rows = np.zeros((2000, 8), dtype=np.float32)
    rows[[0, 3]] = 1
    assert tokens_seen(plan, {embedding_of(plan): np.ones_like(rows)}, {embedding_of(plan): rows}) == {3}


def test_scores_are_shares_of_what_was_named_and_of_what_was_there() -> None:
    scores = token_scores(frozenset({1, 2, 3, 4}), frozenset({1, 2, 9}))
    assert (scores.precision, scores.recall) == (0.5, pytest.approx(2 / 3))
    nothing = token_scores(frozenset(), frozenset({1}))
    assert (nothing.precision, nothing.recall) == (None, 0.0)
    assert scores + nothing == TokenScores(found=4, right=2, there=4)


def test_a_guess_is_of_the_words_that_most_texts_have() -> None:
    x = torch.tensor([[1.0, 1, 1, 2], [3, 2, 0, 0], [2, 3, 0, 0]])
    assert most_frequent(x, 1) == {2}
    assert most_frequent(x, 2) == {2, 3}


def test_a_network_without_an_embedding_is_refused() -> None:
    with pytest.raises(UsageError, match="no embedding that learns"):
        embedding_of(one_round())
