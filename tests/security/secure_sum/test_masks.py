"""A mask is the keystream of AES-256-CTR; masks add up and cancel exactly in both rings, and differ if keys do."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from security.secure_sum.masks import apply_masks, keystream, mask

KEY = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
RINGS: list[Literal[32, 64]] = [32, 64]
DTYPES = {32: np.dtype(np.uint32), 64: np.dtype(np.uint64)}
LENGTHS = [0, 1, 2, 3, 4, 5, 7, 1001, 16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 40_001]  # round blocks, chunks


def keys(count: int, seed: int = 0) -> list[bytes]:
    return [np.random.default_rng([seed, place]).bytes(32) for place in range(count)]


# --- the keystream


def test_the_keystream_is_that_of_the_standard() -> None:
    # NIST SP 800-38A, F.5.5, CTR-AES256.Encrypt.
    plain = bytes.fromhex(
        "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
    )
    cipher = bytes.fromhex(
        "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
    )
    first = 0xF0F1F2F3F4F5F6F7F8F9FAFBFCFDFEFF
    assert keystream(KEY, first).update(plain) == cipher
    # One block after the other, each from its own counter: how threads begin in the middle.
    parts = [keystream(KEY, first + place).update(plain[16 * place : 16 * place + 16]) for place in range(4)]
    assert b"".join(parts) == cipher


@pytest.mark.parametrize("bits", RINGS)
def test_a_mask_is_the_encrypted_counters_as_little_endian_numbers(bits: Literal[32, 64]) -> None:
    length = 40_001
    blocks = -(-length * bits // 8 // 16)
    counters = b"".join(place.to_bytes(16, "big") for place in range(blocks))
    stream = Cipher(AES(KEY), ECB()).encryptor().update(counters)  # by another way than counter mode
    expected = np.frombuffer(stream[: length * bits // 8], DTYPES[bits].newbyteorder("<"))
    assert np.array_equal(mask(KEY, length, bits), expected)


@pytest.mark.parametrize("bits", RINGS)
def test_a_shorter_mask_is_the_beginning_of_a_longer_one(bits: Literal[32, 64]) -> None:
    longest = mask(KEY, LENGTHS[-1], bits)
    for length in LENGTHS:
        assert np.array_equal(mask(KEY, length, bits), longest[:length])


# --- adding them


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("length", LENGTHS)
def test_masks_are_added_and_subtracted_exactly(bits: Literal[32, 64], length: int) -> None:
    vector = np.random.default_rng(length).integers(0, 2**bits, length, dtype=DTYPES[bits])
    add, subtract = keys(3, 1), keys(2, 2)
    expected = [int(value) for value in vector]
    for sign, some in ((1, add), (-1, subtract)):
        for key in some:
            expected = [have + sign * int(more) for have, more in zip(expected, mask(key, length, bits), strict=True)]
    apply_masks(vector, add=add, subtract=subtract)
    assert vector.tolist() == [value % 2**bits for value in expected]


@pytest.mark.parametrize("bits", RINGS)
def test_what_was_added_can_be_subtracted_again(bits: Literal[32, 64]) -> None:
    vector = np.random.default_rng(7).integers(0, 2**bits, 10_007, dtype=DTYPES[bits])
    masked = vector.copy()
    apply_masks(masked, add=keys(5), subtract=keys(4, 1))
    assert not np.array_equal(masked, vector)
    apply_masks(masked, add=keys(4, 1), subtract=keys(5))
    assert np.array_equal(masked, vector)
    apply_masks(masked, add=[KEY], subtract=[KEY])
    apply_masks(masked, add=[], subtract=[])
    assert np.array_equal(masked, vector)


@pytest.mark.parametrize("bits", RINGS)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_threads_change_nothing(bits: Literal[32, 64], threads: int) -> None:
    # Long enough that there is work for so many, and ends within a block.
    length = 2**20 + 3
    alone, together = np.zeros((2, length), DTYPES[bits])
    some = keys(10)
    for stretch in some:  # every mask by itself is too short for threads
        apply_masks(alone, add=[stretch], subtract=[], threads=1)
    apply_masks(together, add=some, subtract=[], threads=threads)
    assert np.array_equal(alone, together)


def test_a_stretch_of_a_larger_vector_is_masked_in_place() -> None:
    whole = np.zeros(100, np.uint32)
    apply_masks(whole[10:25], add=[KEY], subtract=[])
    assert np.array_equal(whole[10:25], mask(KEY, 15, 32))
    assert not whole[:10].any()
    assert not whole[25:].any()


@pytest.mark.parametrize(
    "vector",
    [
        np.zeros(4, np.int32),
        np.zeros(4, np.float32),
        np.zeros(4, np.uint16),
        np.zeros(4, np.dtype(np.uint32).newbyteorder()),
        np.zeros((2, 2), np.uint32),
        np.zeros(8, np.uint64)[::2],
    ],
    ids=["signed", "float", "narrow", "byte-order", "two-rows", "gaps"],
)
def test_other_vectors_are_refused(vector: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match="one contiguous row of uint32 or uint64"):
        apply_masks(vector, add=[KEY], subtract=[])


def test_a_vector_that_cannot_be_written_is_refused() -> None:
    vector = np.zeros(4, np.uint32)
    vector.flags.writeable = False
    with pytest.raises(ValueError, match="writable"):
        apply_masks(vector, add=[KEY], subtract=[])


@pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
def test_keys_of_another_length_are_refused_before_anything_is_masked(length: int) -> None:
    vector = np.zeros(4, np.uint32)
    for given in ({"add": [KEY, bytes(length)], "subtract": []}, {"add": [KEY], "subtract": [bytes(length)]}):
        with pytest.raises(ValueError, match="32 bytes"):
            apply_masks(vector, **given)
    assert not vector.any()


# --- what masks look like


def test_seeds_that_differ_in_one_bit_differ_everywhere() -> None:
    # All 256 bits matter: the seed is not cut short. Two independent masks agree at one of 4096 places with probability
    # 4096/2^32; that any of the 256 pairs agrees at more than 3 of them, with less than 1e-20. Of 131072 bits half
    # differ, with a deviation of 181; that any pair is more than 7 deviations off, with 256 · 2.6e-12 < 1e-9.
    seed = os.urandom(32)
    first = mask(seed, 4096, 32)
    for bit in range(256):
        other = mask((int.from_bytes(seed, "big") ^ 1 << bit).to_bytes(32, "big"), 4096, 32)
        assert np.count_nonzero(first == other) <= 3
        assert abs(int(np.bitwise_count(first ^ other).sum()) - 65_536) < 7 * 181.02


@pytest.mark.parametrize("bits", RINGS)
def test_a_masked_vector_looks_uniform_whatever_it_held(bits: Literal[32, 64]) -> None:
    # Chi-square over the 256 bytes, 255 degrees of freedom: above 381 with probability below 1e-6.
    for value in (0, 1, 2**bits - 1):
        vector = np.full(65_536, value, DTYPES[bits])
        apply_masks(vector, add=[os.urandom(32)], subtract=[])
        counts = np.bincount(vector.view(np.uint8), minlength=256)
        expected = vector.nbytes / 256
        assert float(((counts - expected) ** 2 / expected).sum()) < 381
