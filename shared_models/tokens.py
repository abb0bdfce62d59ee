"""Texts to numbers of tokens, by public rules: nothing is learnt from anybody's texts.

Three ways. `words`: lower-case words and single marks, each to the number that its hash gives, so that no list of words
has to be made of private texts, or agreed on; words may share a number (Weinberger et al. 2009, arXiv 0902.2206).
`characters`: printable ASCII and the end of a line, each its own number, and one for anything else. `wordpiece`: the
pieces of a pretrained encoder's own vocabulary.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from security.errors import UsageError
from shared_models.example_form import PADDING

if TYPE_CHECKING:
    from shared_models.plan_data import TextPlan

Tokens = npt.NDArray[np.int64]

_WORD: Final = re.compile(r"\w+(?:'\w+)?|[^\w\s]")
_CHARACTERS: Final = "\n" + "".join(map(chr, range(32, 127)))
_OTHER: Final = len(_CHARACTERS) + 1
_WORDPIECES: Final = 30522  # of the BERT vocabulary that the known encoders share

CHARACTERS: Final = _OTHER + 1
"""Number of tokens of `characters`, padding included."""

SPECIAL: Final = (101, 102)
"""Tokens of `wordpiece` for a text's beginning and end."""


def vocabulary_of(plan: TextPlan) -> int:
    """Number of tokens, padding included."""
    return {"words": plan.vocabulary, "characters": CHARACTERS, "wordpiece": _WORDPIECES}[plan.tokens]


def character_names() -> tuple[str, ...]:
    """What each token of `characters` stands for."""
    return ("(none)", *_CHARACTERS, "(other)")


def tokens_of(texts: Sequence[str], plan: TextPlan) -> Tokens:
    """Numbers of tokens (n, places) of texts: cut at their end, or filled with padding.

    Raises:
        UsageError: for `wordpiece`: the vocabulary isn't fetched, or its library not installed.
    """
    found = np.full((len(texts), plan.places), PADDING, dtype=np.int64)
    for row, numbers in enumerate(_numbers(texts, plan)):
        some = numbers[: plan.places]
        found[row, : len(some)] = some
    return found


def pieces_of(text: str, plan: TextPlan) -> tuple[str, ...]:
    """What each of a text's tokens stands for, for people; as many as `tokens_of` finds.

    Raises:
        UsageError: as `tokens_of`.
    """
    if plan.tokens == "wordpiece":
        return tuple(_wordpiece(plan.places).encode(text).tokens)
    found = tuple(text) if plan.tokens == "characters" else tuple(_WORD.findall(text.lower()))
    return found[: plan.places]


def characters_of(text: str) -> Tokens:
    """Numbers (n,) of a text's characters."""
    return np.array([_number_of_character(character) for character in text], dtype=np.int64)


def _numbers(texts: Sequence[str], plan: TextPlan) -> Sequence[Sequence[int]]:
    if plan.tokens == "wordpiece":
        encoded = _wordpiece(plan.places).encode_batch(list(texts))
        return [one.ids for one in encoded]
    if plan.tokens == "characters":
        return [characters_of(text[: plan.places]).tolist() for text in texts]
    return [[_number_of_word(word, plan.vocabulary) for word in _WORD.findall(text.lower())] for text in texts]


def _number_of_word(word: str, vocabulary: int) -> int:
    """From 1; the same on every machine. Nothing is remembered: words are people's."""
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % (vocabulary - 1)


@lru_cache(maxsize=256)
def _number_of_character(character: str) -> int:
    place = _CHARACTERS.find(character)
    return _OTHER if place < 0 else 1 + place


@lru_cache(maxsize=4)
def _wordpiece(places: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError("data.text.tokens = 'wordpiece': needs tokenizers; pip install 'veil-fl[text]'") from error
    from shared_models.downloads.fetch import fetched

    tokenizer = Tokenizer.from_file(str(fetched("minilm")["tokenizer.json"]))
    tokenizer.enable_truncation(places)
    tokenizer.no_padding()
    return tokenizer
