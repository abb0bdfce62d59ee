"""Texts to tokens by public rules: the same on every machine, whatever the texts."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from shared_models.example_form import PADDING
from shared_models.plan_data import TextPlan
from shared_models.tokens import CHARACTERS, characters_of, tokens_of, vocabulary_of


def test_words_are_hashed_to_the_same_numbers_on_every_machine() -> None:
    plan = TextPlan(tokens="words", vocabulary=8192, places=6)
    assert tokens_of(["It's good!", "GOOD, it's", ""], plan).tolist() == [
        [1395, 7619, 6514, 0, 0, 0],
        [7619, 7401, 1395, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    script = (
        "from shared_models.tokens import tokens_of; from shared_models.plan_data import TextPlan; "
        "print(tokens_of(['good'], TextPlan(places=1))[0, 0])"
    )
    # Python's own hashes of texts differ from process to process.
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(said) == 7619


def test_a_word_is_never_padding_and_numbers_fill_the_vocabulary() -> None:
    plan = TextPlan(tokens="words", vocabulary=50, places=1)
    found = tokens_of([f"word{i}" for i in range(5000)], plan)
    assert sorted(set(found[:, 0].tolist())) == list(range(1, 50))
    counts = np.bincount(found[:, 0], minlength=50)[1:]
    # Chi-squared of 48 degrees of freedom: beyond 110 by chance once in a million.
    assert float(((counts - 5000 / 49) ** 2 / (5000 / 49)).sum()) < 110


def test_long_texts_are_cut_and_short_ones_filled() -> None:
    plan = TextPlan(tokens="characters", places=3)
    assert tokens_of(["abcd", "a"], plan).tolist() == [characters_of("abc").tolist(), [*characters_of("a"), 0, 0]]
    assert PADDING == 0


def test_characters_have_their_own_numbers_and_share_one_beyond_ascii() -> None:
    printable = "\n" + "".join(map(chr, range(32, 127)))
    assert characters_of(printable).tolist() == list(range(1, 97))
    assert characters_of("é\t☃").tolist() == [97, 97, 97]
    assert CHARACTERS == 98 == vocabulary_of(TextPlan(tokens="characters"))


@pytest.mark.parametrize(("tokens", "size"), [("words", 123), ("characters", 98), ("wordpiece", 30522)])
def test_the_vocabulary_is_public(tokens: str, size: int) -> None:
    assert vocabulary_of(TextPlan.model_validate({"tokens": tokens, "vocabulary": 123})) == size
