"""Where the randomness of a private step comes from: noise and Poisson samples, from one keystream.

Whoever reads a release must not be able to predict either, so both come from AES-256 in counter mode (NIST
SP 800-38A) under a key of their own; never from the generators of torch, numpy or Python, whose seed clients may
share. All noise is whole numbers (rule 9): a Gaussian rounded to the grid (`privacy.noise.grid`), a discrete Gaussian
(`privacy.noise.discrete`) or Skellam noise (`privacy.noise.skellam`). No floating-point noise can be drawn here, so
none can be released by mistake.
"""

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NoReturn, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray
from torch import Tensor

from privacy.noise.discrete import discrete_gaussian_table
from privacy.noise.grid import rounded_normals
from privacy.noise.skellam import skellam_table
from privacy.noise.table import NoiseTable
from privacy.noise_limits import LARGEST_SCALE

_PAIRS = 1 << 13  # uniforms fit the second-level cache: a third faster than 2^16


class NoiseSource(Protocol):
    """Draws for one client: all from one stream, in the order of the calls, and by one thread at a time."""

    @property
    def is_secret(self) -> bool:
        """Whether nobody but this process can know the draws; without that, no claim."""

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        """Independent values of round(scale · G), G standard normal: int64, of `shape`."""

    def discrete_gaussian(
        self, shape: Sequence[int], sigma: float, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Independent whole numbers k with probability proportional to exp(-k² / 2 sigma²): int64, of `shape`."""

    def skellam(self, shape: Sequence[int], deviation: float, *, device: torch.device | str | None = None) -> Tensor:
        """Independent differences of two Poisson variables of one mean: int64, of `shape`."""

    def uniform(self, n: int) -> NDArray[np.float64]:
        """`n` independent multiples of 2^-53, uniform in [0, 1)."""

    def bernoulli(self, n: int, rate: float) -> Tensor:
        """Of 0 .. n-1, those that `n` independent coins of probability `rate` choose: int64, ascending."""


class _AesNoise(ABC):
    """AES-256-CTR keystream and what is made of it. Subclasses say where a key comes from."""

    __slots__ = ("_keystream", "_process")

    def __init__(self, key: bytes) -> None:
        self._start(key)

    @abstractmethod
    def _forked(self) -> bytes:
        """The key to go on with in a forked process, which must not repeat its parent's stream."""

    def grid_normal(self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None) -> Tensor:
        """Independent values of round(scale · G), G standard normal: int64, of `shape`.

        Added to whole numbers, it is the Gaussian mechanism of standard deviation `scale`, rounded afterwards. The
        rounded values themselves have variance scale² + 1/12, nearly; and a *sum* of several such draws is not the
        rounding of one Gaussian; what it is, `privacy.mechanisms.rounded_gaussian` says.

        Args:
            shape: of the result.
            scale: standard deviation in grid steps, above 0 and at most 2^34.
            device: where the result goes; it is drawn on the CPU.

        Raises:
            ValueError: if the scale is out of range.
        """
        if not 0 < scale <= LARGEST_SCALE:
            raise ValueError(f"the scale of noise on a grid must be above 0 and at most 2^34, got {scale}")
        values = np.empty(math.prod(shape), dtype=np.int64)
        for start in range(0, len(values), 2 * _PAIRS):
            chunk = values[start : start + 2 * _PAIRS]
            first, second = self.uniform(2 * ((len(chunk) + 1) // 2)).reshape(2, -1)
            chunk[:] = rounded_normals(first, second, scale, self._word)[: len(chunk)]
        return torch.from_numpy(values).reshape(tuple(shape)).to(device=device)

    def discrete_gaussian(
        self, shape: Sequence[int], sigma: float, *, device: torch.device | str | None = None
    ) -> Tensor:
        """Independent whole numbers k with probability proportional to exp(-k² / 2 sigma²): int64, of `shape`.

        The draws come from a table; how far they are from that is `discrete_gaussian_table(sigma).distance`.

        Args:
            shape: of the result.
            sigma: between 2^-3 and 2^16.
            device: where the result goes; it is drawn on the CPU.

        Raises:
            ValueError: if sigma is out of range.
        """
        return self._drawn(discrete_gaussian_table(sigma), shape, device)

    def skellam(self, shape: Sequence[int], deviation: float, *, device: torch.device | str | None = None) -> Tensor:
        """Independent differences of two Poisson variables of one mean: int64, of `shape`.

        The draws come from a table; how far they are from that is `skellam_table(deviation).distance`.

        Args:
            shape: of the result.
            deviation: standard deviation, between 2^-3 and 2^16.
            device: where the result goes; it is drawn on the CPU.

        Raises:
            ValueError: if the deviation is out of range.
        """
        return self._drawn(skellam_table(deviation), shape, device)

    def _drawn(self, table: NoiseTable, shape: Sequence[int], device: torch.device | str | None) -> Tensor:
        values = np.empty(math.prod(shape), dtype=np.int64)
        for start in range(0, len(values), 2 * _PAIRS):
            chunk = values[start : start + 2 * _PAIRS]
            chunk[:] = table.draw(self._words(len(chunk)), self._word)
        return torch.from_numpy(values).reshape(tuple(shape)).to(device=device)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """`n` independent multiples of 2^-53, uniform in [0, 1)."""
        return (self._words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def bernoulli(self, n: int, rate: float) -> Tensor:
        """Of 0 .. n-1, those that `n` independent coins of probability `rate` choose: int64, ascending."""
        rate = math.floor(rate * 2.0**53) * 2.0**-53  # never above the rate that is accounted for
        chosen = [start + np.flatnonzero(self.uniform(min(_PAIRS, n - start)) < rate) for start in range(0, n, _PAIRS)]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *chosen]))

    def _words(self, n: int) -> NDArray[np.uint64]:
        if self._process != _process():
            self._start(self._forked())
        return np.frombuffer(self._keystream.update(bytes(8 * n)), dtype="<u8")

    def _word(self) -> int:
        return int(self._words(1)[0])

    def _start(self, key: bytes) -> None:
        # No counter is ever used twice under one key: each key starts one keystream, read once from zero on.
        self._keystream = Cipher(AES(key), CTR(bytes(16))).encryptor()
        self._process = _process()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} can't be copied or pickled: a copy would repeat its noise")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class SecretNoise(_AesNoise):
    """Noise under a fresh 256-bit key from the operating system: no seed, and no two objects alike.

    The key lives in the cipher's state alone. A forked process goes on under a new one.
    """

    __slots__ = ()
    is_secret: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__(os.urandom(32))

    def _forked(self) -> bytes:
        return os.urandom(32)


class ReproducibleNoise(_AesNoise):
    """The same noise keyed by what the caller knows: for simulation only, "simulated, not a claim".

    Args:
        key_material: names the stream; equal material gives equal draws, unlike material independent ones
            (HKDF with SHA-256, RFC 5869).

    Raises:
        ValueError: if there is no key material.
        RuntimeError: on drawing in a forked process, which would repeat the draws of its parent.
    """

    __slots__ = ()
    is_secret: ClassVar[bool] = False

    def __init__(self, key_material: bytes) -> None:
        if not key_material:
            raise ValueError("reproducible noise needs key material, such as the run's seed and the client's id")
        super().__init__(HKDF(SHA256(), 32, salt=None, info=b"veil reproducible noise 1").derive(key_material))

    def _forked(self) -> bytes:
        raise RuntimeError("reproducible noise made before a fork would repeat there: make it in the new process")


_forks = 0


def _count_fork() -> None:
    global _forks  # noqa: PLW0603 - process-wide by nature
    _forks += 1


os.register_at_fork(after_in_child=_count_fork)


def _process() -> tuple[int, int]:
    # A process id alone may come round again in a grandchild; the count alone misses forks outside Python.
    return os.getpid(), _forks
