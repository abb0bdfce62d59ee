"""Masks: the keystream of AES-256 in counter mode, added to a vector modulo 2^32 or 2^64.

A mask is the keystream from counter block zero, read as little-endian numbers; its key is used for nothing else. This
is where the time of a secure sum goes: every client makes one mask for each of its neighbours.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

KEY_BYTES: Final = 32

Word = np.uint32 | np.uint64

_BLOCK: Final = 16  # bytes of AES
_CHUNK: Final = 1 << 17  # bytes; three such buffers stay in a core's own cache
_ZEROS: Final = bytes(_CHUNK)
_WORTH_A_THREAD: Final = 1 << 23  # bytes of keystream: about 1 ms
_MOST_THREADS: Final = 16


def apply_masks(
    vector: NDArray[Any], *, add: Sequence[bytes], subtract: Sequence[bytes], threads: int | None = None
) -> None:
    """Add and subtract the masks of keys, in place, modulo 2^32 or 2^64.

    Args:
        vector: numbers in one row, contiguous, of type uint32 or uint64 (of this machine's byte order).
        add: keys of the masks to add, 32 bytes each.
        subtract: keys of the masks to subtract.
        threads: at most so many at once; by default as many as this process has processors. The result is the same.

    Raises:
        ValueError: another kind of vector, or a key of another length.
    """
    if vector.dtype not in (np.uint32, np.uint64) or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ValueError("masks are added to one contiguous row of uint32 or uint64")
    if not vector.flags.writeable:
        raise ValueError("masks are added in place: the vector must be writable")
    if any(len(key) != KEY_BYTES for key in (*add, *subtract)):
        raise ValueError(f"the key of a mask has {KEY_BYTES} bytes")
    work = vector.nbytes * (len(add) + len(subtract))
    workers = min(work // _WORTH_A_THREAD, vector.nbytes // _CHUNK, threads or _processors(), _MOST_THREADS)
    if workers < 2:
        _apply(vector, 0, add, subtract)
        return
    # Each thread has a stretch of the vector, a whole number of chunks: AES runs outside the interpreter's lock.
    step = -(-vector.nbytes // (workers * _CHUNK)) * _CHUNK // vector.itemsize
    with ThreadPoolExecutor(workers) as pool:
        done = [
            pool.submit(_apply, vector[start : start + step], start * vector.itemsize // _BLOCK, add, subtract)
            for start in range(0, len(vector), step)
        ]
        for one in done:
            one.result()


def mask(key: bytes, length: int, bits: Literal[32, 64]) -> NDArray[Any]:
    """One mask alone: what `apply_masks` adds to a vector of `length` numbers of `bits` bits.

    Raises:
        ValueError: a key of another length.
    """
    vector = np.zeros(length, np.uint32 if bits == 32 else np.uint64)
    apply_masks(vector, add=[key], subtract=[])
    return vector


def keystream(key: bytes, first_block: int = 0) -> CipherContext:
    """AES-256-CTR from a counter block on (NIST SP 800-38A): encrypting zeros gives its keystream."""
    return Cipher(AES(key), CTR(first_block.to_bytes(_BLOCK, "big"))).encryptor()


def _apply(vector: NDArray[Any], first_block: int, add: Sequence[bytes], subtract: Sequence[bytes]) -> None:
    signed: list[tuple[np.ufunc, bytes]] = [(np.add, key) for key in add] + [(np.subtract, key) for key in subtract]
    streams = [(combine, keystream(key, first_block)) for combine, key in signed]
    drawn = bytearray(_CHUNK + _BLOCK)  # the room that `update_into` asks for beyond what it writes
    zeros = memoryview(_ZEROS)
    words = np.frombuffer(drawn, vector.dtype.newbyteorder("<"), _CHUNK // vector.itemsize)
    for start in range(0, len(vector), len(words)):
        part = vector[start : start + len(words)]
        some, wanted = words[: len(part)], zeros[: part.nbytes]
        for combine, stream in streams:
            stream.update_into(wanted, drawn)
            combine(part, some, out=part)


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
