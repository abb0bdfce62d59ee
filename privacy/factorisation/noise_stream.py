"""A run's sums with correlated noise, round by round, in whole numbers (rule 9).

**What is released.** Let x_t be the sum of round t's contributions: each is clipped to `grid.norm` and rounded to whole
steps, and is no longer than the clipping norm for it (`privacy.release_grid`). Let K be the matrix C in whole numbers
of 2^-10 (`privacy.factorisation.banded`) and z_t whole-number noise, round(scale G) in every coordinate. The mechanism
is

    y_t = (K x)_t + z_t        for t = 1 .. n: whole numbers, in 2^-10 steps

K x is whole without any rounding, because K and x are. So y = round(K x + scale G), which is post-processing of the
Gaussian mechanism of standard deviation `scale` on K x, and one client moves K x by at most the sensitivity of K times
the clipping norm in steps: an exact number. `scale` is the noise multiplier times that. This is all the claim needs.

It holds although x_t depends on y_1 .. y_(t-1), through the model: on every path, a client's contribution u_j to
round j moves y_t by K_tj u_j, two such rounds j share no t, and so the squares of all moves add up to no more than the
squared sensitivity. (Denisov et al. 2022, arXiv 2202.08312, theorem 2.1, for adaptive streams in general.)

**What is published** is the estimate of x_t from y_1 .. y_t alone, a public function of them (`decode`):

    v_t = (y_t - sum_{j<t} K_tj v_j) / K_tt, rounded to the nearest whole step, halves up

Without the rounding that is K^-1 y = x + K^-1 z. The rounding, of at most half a step, goes into the sums of later
rounds like a little more noise, uniform within K_tt / 2: nothing beside `scale`.

**What is computed.** Put in y_t, and the past of x appears only in differences e_j = x_j - v_j:

    y_t - sum_{j<t} K_tj v_j = K_tt x_t + z_t + sum_{j<t} K_tj e_j

All terms are 64-bit whole numbers that can't overflow, so this is an identity, not an approximation: the published
stream is `decode` of y to the last bit, though neither y nor x is ever stored. The memory is the last b - 1 of e_j.

**The state is secret.** e_j is the noise of round j (with the sign turned): with it and what is published, everybody
has the exact sums x_j. A trusted server may keep it in its checkpoint, and nobody else may see it.

**Each round once.** For one round, one y_t may be published, ever. Write the state after a round to disk *before* its
result is published, or together with it; a round whose result was never published may be done again with new noise.
"""

import hashlib
import math
import struct
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from privacy.factorisation.banded import DIGITS, BandedMatrix, sensitivity
from privacy.factorisation.participation import Participation
from privacy.mechanisms.correlated import BandedFactorisation
from privacy.mechanisms.release import count, positive
from privacy.noise import NoiseSource
from privacy.release_grid import ReleaseGrid

_MAGIC = b"veil banded noise 1\n"
_HEAD = struct.Struct("<32s8x3Qd")  # digest of the matrix; round, coordinates, steps of the grid, scale of the noise
_REACH = 64.0  # in standard deviations: noise beyond it has probability 2^-2900


class BandedNoise:
    """Adds the noise of one run; holds the last b - 1 rounds' noise, which is secret.

    Args:
        matrix: C.
        participation: what the cohorts keep to.
        clipping_norm: C of a client's contribution to one round, > 0.
        noise_multiplier: standard deviation of the noise on C x over the distance that one client can move it, > 0.
        dimensions: values of a sum, >= 1.
        contributions: most clients in one round, >= 1: bounds the sums, public.

    Raises:
        ValueError: if an argument is out of range, or so large that no grid fits.
    """

    __slots__ = (
        "_errors",
        "_round",
        "contributions",
        "dimensions",
        "grid",
        "matrix",
        "noise_multiplier",
        "participation",
    )

    matrix: BandedMatrix
    participation: Participation
    noise_multiplier: float
    grid: ReleaseGrid
    dimensions: int
    contributions: int

    def __init__(
        self,
        *,
        matrix: BandedMatrix,
        participation: Participation,
        clipping_norm: float,
        noise_multiplier: float,
        dimensions: int,
        contributions: int,
    ) -> None:
        self.matrix, self.participation = matrix, participation
        self.dimensions, self.contributions = count("dimensions", dimensions), count("contributions", contributions)
        whole = sensitivity(matrix, participation) * 2.0**DIGITS  # of K, for contributions of length 1
        self.noise_multiplier = positive("noise_multiplier", noise_multiplier)
        relative = math.nextafter(self.noise_multiplier * whole, math.inf)  # never less than the price is about
        try:
            grid = ReleaseGrid.of(
                clipping_norm=positive("clipping_norm", clipping_norm),
                noise_multiplier=relative,
                dimensions=self.dimensions,
            )
        except ValueError:
            raise ValueError(
                f"noise_multiplier {noise_multiplier} with {participation.most} participations of a client and "
                f"{dimensions} parameters is out of range: the grid would be too coarse for the clipping norm; give "
                "less noise, train fewer parameters, or let clients take part less often"
            ) from None
        self.grid = grid  # its noise scale is that of z: noise multiplier and sensitivity are both in it
        if not self._largest() < 2.0**62:
            raise ValueError(f"sums of {contributions} contributions with such noise don't fit 64 bits")
        self._round = 1
        self._errors = np.zeros((matrix.band - 1, self.dimensions), dtype=np.int64)  # e_j at row j mod (b - 1)

    @property
    def round(self) -> int:
        """The round whose sum comes next, from 1; `rounds` + 1 after the last."""
        return self._round

    def release(self) -> BandedFactorisation:
        """What the whole run releases: charged once, before its first round."""
        return BandedFactorisation(
            noise_multiplier=self.noise_multiplier,
            rounds=self.matrix.rounds,
            band=self.matrix.band,
            separation=self.participation.separation,
            participations=self.participation.most,
            factorisation=self.matrix.digest,
        )

    def publish(self, round: int, total: NDArray[np.int64], noise: NoiseSource) -> NDArray[np.int64]:
        """What may be seen of a round's sum: v_t, in steps of the grid; times `grid.step` it estimates the sum.

        Args:
            round: must be the next one: a round is published once, and none is left out (its sum may be zeros).
            total: x_t: the exact sum of contributions, in steps.
            noise: where z_t comes from; a claim needs one that is secret.

        Raises:
            ValueError: another round, or no such sum. The state is as before.
        """
        if round != self._round or round > self.matrix.rounds:
            due = f"round {self._round}" if self._round <= self.matrix.rounds else "none"
            raise ValueError(f"noise is due for {due} of {self.matrix.rounds}, not for round {round}")
        if total.dtype != np.int64 or total.shape != (self.dimensions,):
            raise ValueError(f"a sum is {self.dimensions} whole numbers of 64 bits")
        if self._too_large(total):
            raise ValueError(f"a sum of at most {self.contributions} contributions can't be as large")
        row = self.matrix.row(round - 1)
        found = noise.grid_normal((self.dimensions,), self.grid.noise_scale).numpy()
        assert np.abs(found).max() <= _REACH * self.grid.noise_scale
        found += row[0] * total
        for back, entry in enumerate(row[1:], start=1):
            if entry:
                found += entry * self._errors[(round - back) % len(self._errors)]
        published = _divided(found, row[0])
        if len(self._errors):
            np.subtract(total, published, out=self._errors[round % len(self._errors)])
        self._round += 1
        return published

    def state(self) -> bytes:
        """All that the next rounds need: secret, to be written before or together with what was published."""
        head = _MAGIC + _HEAD.pack(self._head(), self._round, *self._constants())
        body = head + self._errors.astype("<i8").tobytes()
        return body + hashlib.sha256(body).digest()

    def restore(self, state: bytes) -> None:
        """Goes on from what `state` gave, of an object with the same constants.

        Raises:
            ValueError: if it is damaged, or of another run.
        """
        size = len(_MAGIC) + _HEAD.size
        body = state[:-32]
        if len(body) != size + self._errors.nbytes or hashlib.sha256(body).digest() != state[-32:]:
            raise ValueError("the state of correlated noise is damaged or of another run")
        digest, round, dimensions, steps, scale = _HEAD.unpack(body[len(_MAGIC) : size])
        same = (self._head(), *self._constants())
        if not body.startswith(_MAGIC) or (digest, dimensions, steps, scale) != same:
            raise ValueError("the state of correlated noise is of another run")
        if not 1 <= round <= self.matrix.rounds + 1:
            raise ValueError("the state of correlated noise is of no round")
        self._errors = np.frombuffer(body, dtype="<i8", offset=size).astype(np.int64).reshape(self._errors.shape)
        self._round = round

    def _head(self) -> bytes:
        return bytes.fromhex(self.matrix.digest)

    def _constants(self) -> tuple[int, int, float]:
        return self.dimensions, self.grid.steps, self.grid.noise_scale

    def _too_large(self, total: NDArray[np.int64]) -> bool:
        most = self.contributions * self.grid.steps
        return bool(total.max() > most or total.min() < -most)

    def _largest(self) -> float:
        """A bound on every 64-bit number that `publish` makes."""
        dense = self.matrix.dense()
        rows = float(np.abs(dense).sum(axis=1).max()) * 2.0**DIGITS
        noise = _REACH * self.grid.noise_scale + rows
        errors = float(np.abs(np.linalg.inv(dense)).sum(axis=1).max()) * 2.0**-DIGITS * noise + 1
        return rows * (self.contributions * self.grid.steps + errors) + noise

    def __reduce__(self) -> NoReturn:
        raise TypeError("BandedNoise can't be copied or pickled: its state is secret, and says each round once")

    def __repr__(self) -> str:
        return f"BandedNoise(round {self._round} of {self.matrix.rounds})"


def decode(matrix: BandedMatrix, y: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is published, as a function of the mechanism's output alone: the definition that `BandedNoise` meets.

    Args:
        matrix: C.
        y: n rows or fewer: K x + z, round by round.

    Raises:
        ValueError: there are more rows than rounds.
    """
    if len(y) > matrix.rounds:
        raise ValueError(f"a run of {matrix.rounds} rounds has no {len(y)} results")
    found = np.zeros_like(y)
    for t, result in enumerate(y):
        row = matrix.row(t)
        rest = result.copy()
        for back, entry in enumerate(row[1:], start=1):
            rest -= entry * found[t - back]
        found[t] = _divided(rest, row[0])
    return found


def _divided(values: NDArray[np.int64], divisor: int) -> NDArray[np.int64]:
    """To the nearest whole number, halves up."""
    nearest: NDArray[np.int64] = (values + divisor // 2) // divisor
    return nearest
