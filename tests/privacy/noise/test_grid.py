"""Rule 9: integer noise that is a true Gaussian, rounded; no table, no end of the tails, no approximation.

Statistical tests have a fixed key, and would fail for one key in a million. "Further digits" are those of the
uniforms beyond the 53rd, which only a value near a rounding boundary needs.
"""

import itertools
import math
import random
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from privacy.noise.grid import resolve, rounded_normals
from privacy.noise_limits import LARGEST_SCALE

FALSE_ALARM = 1e-6


@pytest.fixture(autouse=True)
def _precise() -> object:
    with mpmath.workprec(400):
        yield


def box_muller(first: object, second: object) -> tuple[mpmath.mpf, mpmath.mpf]:
    """Box and Muller 1958, in 400 bits."""
    radius = mpmath.sqrt(-2 * mpmath.log(1 - mpmath.mpf(first)))
    return radius * mpmath.cos(2 * mpmath.pi * second), radius * mpmath.sin(2 * mpmath.pi * second)


def never() -> int:
    raise AssertionError("further digits were drawn")


class Words:
    """Further digits, and which were drawn."""

    def __init__(self, seed: int) -> None:
        self._generator = random.Random(seed)
        self.drawn: list[int] = []

    def __call__(self) -> int:
        self.drawn.append(self._generator.getrandbits(64))
        return self.drawn[-1]


@pytest.mark.parametrize("scale", [0.4, 1.0, 300.0, 2.0**20, 1.1 * 2.0**24])
def test_a_value_is_certain_only_if_no_further_digits_can_change_it(scale: float) -> None:
    first, second = ReproducibleNoise(b"x").uniform(600).reshape(2, -1)
    cosines, sines = rounded_normals(first, second, scale, never).reshape(2, -1)
    for u, v, cosine, sine in zip(first, second, cosines, sines, strict=True):
        # Where none of the four corners of what 53 digits leave open rounds otherwise, nothing between them does.
        for du, dv in itertools.product((0, mpmath.mpf(2) ** -53), repeat=2):
            x, y = box_muller(u + du, v + dv)
            assert (int(mpmath.nint(scale * x)), int(mpmath.nint(scale * y))) == (cosine, sine)


def with_digits(start: float, further: list[int]) -> mpmath.mpf:
    digits = int(start * 2**53)
    for word in further:
        digits = digits << 64 | word
    return digits / mpmath.mpf(2) ** (53 + 64 * len(further))


def test_near_a_boundary_further_digits_decide() -> None:
    """Here for values placed as near to k + 1/2 as float64 can."""
    generator = np.random.default_rng(1)
    tried = up = 0
    for i in range(200):
        u, v = generator.integers(1, 2**53, 2) * 2.0**-53
        k = int(generator.integers(1, 2**24))
        scale = float((k + mpmath.mpf(0.5)) / abs(box_muller(u, v)[0]))
        if scale > LARGEST_SCALE:
            continue
        more = Words(i)
        found = rounded_normals(np.array([u]), np.array([v]), scale, more)
        assert len(more.drawn) >= 2
        first, second = with_digits(u, more.drawn[0::2]), with_digits(v, more.drawn[1::2])
        assert found.tolist() == [int(mpmath.nint(scale * part)) for part in box_muller(first, second)]
        assert abs(found[0]) in (k, k + 1)
        tried, up = tried + 1, up + (abs(int(found[0])) == k + 1)
    assert tried > 150
    assert 0.2 < up / tried < 0.8


@pytest.mark.parametrize("scale", [1.0, 2.0**20, 2.0**34])
def test_resolving_agrees_with_the_quick_way(scale: float) -> None:
    source = ReproducibleNoise(b"resolve")
    first, second = source.uniform(1000).reshape(2, -1)
    quick = rounded_normals(first, second, scale, Words(0)).reshape(2, -1)
    slow = [
        resolve(int(u * 2**53), int(v * 2**53), scale, Words(i))
        for i, (u, v) in enumerate(zip(first, second, strict=True))
    ]
    different = (quick != np.array(slow).T).any(axis=0)
    assert different.sum() <= 5  # at 2^34 a few of them do need further digits, and these are others


def test_all_digits_alike_ask_for_more() -> None:
    ones = 2**64 - 1
    for word, start in ((ones, 2**53 - 1), (0, 0)):  # r has no bound, or its bound is 0: neither may end in an error
        given = iter([word] * 4 + [12345, 67890])
        values = resolve(start, 0, 2.0**20, lambda given=given: next(given))  # type: ignore[misc]
        assert values[1] == 0
        assert 0 <= values[0] < 2**20 * 25
    assert resolve(0, 2**52, 2.0**20, Words(1)) == (0, 0)


def test_the_tails_do_not_end_where_53_bits_would_end_them() -> None:
    far = [resolve(2**53 - 1, 0, 2.0**20, Words(i))[0] * 2.0**-20 for i in range(200)]
    assert min(far) >= math.sqrt(2 * 53 * math.log(2))  # 8.57: the last of the 53-bit values
    # Given that, exp(-r² / 2) 2^53 is uniform, and r is the magnitude of the pair.
    rest = [math.exp(-(r**2) / 2) * 2.0**53 for r in far]
    assert stats.kstest(rest, "uniform").pvalue > FALSE_ALARM


def test_float64_functions_are_as_accurate_as_the_proof_assumes() -> None:
    """The proof allows 2^-48; one unit in the last place is 2^-52 or less."""
    u = np.concatenate([ReproducibleNoise(b"u").uniform(4000), 2.0 ** -np.arange(1, 53), 1 - 2.0 ** -np.arange(2, 53)])
    angle = 2 * np.pi * u
    for x, value in zip(u[u > 0], np.log(u[u > 0]), strict=True):
        exact = mpmath.log(mpmath.mpf(x))
        assert abs(value - exact) <= mpmath.mpf(2) ** -51 * abs(exact)
    for function, exact_function in ((torch.cos, mpmath.cos), (torch.sin, mpmath.sin)):
        for x, value in zip(angle, function(torch.from_numpy(angle)).numpy(), strict=True):
            assert abs(value - exact_function(mpmath.mpf(x))) <= mpmath.mpf(2) ** -51


def test_the_same_noise_on_every_machine() -> None:
    """Exactly rounded values depend on no library's last digit."""
    assert ReproducibleNoise(b"golden").grid_normal((6,), 2.0**20).tolist() == GOLDEN
    assert ReproducibleNoise(b"golden").grid_normal((5,), 2.0**20).tolist() == GOLDEN[:5]


GOLDEN = [1114059, -20930, 187153, -1560526, 2010751, 1495784]


def test_a_draw_of_many_goes_on_where_a_draw_of_few_ends() -> None:
    whole, parts = ReproducibleNoise(b"parts"), ReproducibleNoise(b"parts")
    chunk = 16_384
    together = whole.grid_normal((3 * chunk,), 1000.0)
    assert torch.equal(together, torch.cat([parts.grid_normal((n * chunk,), 1000.0) for n in (1, 2)]))


# --- the distribution ----------------------------------------------------------------------------------------------


def probabilities(scale: float, most: int) -> np.ndarray:
    """P(k) = Phi((k + 1/2) / scale) - Phi((k - 1/2) / scale) for k = -most .. most, the ends with all beyond."""
    k = np.arange(0, most + 1)
    upper = stats.norm.sf((k - 0.5) / scale)  # from the upper tail, where no digits cancel
    right = np.append(upper[1:-1] - upper[2:], upper[-1])
    return np.concatenate([right[::-1], [1 - 2 * upper[1]], right])


@pytest.mark.parametrize("make", [lambda: ReproducibleNoise(b"counts"), SecretNoise], ids=["reproducible", "secret"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 4.5, 60.0])
def test_noise_for_counts_has_the_distribution_of_a_rounded_normal(
    make: Callable[[], NoiseSource], scale: float
) -> None:
    n, most = 400_000, max(1, round(4 * scale))
    drawn = make().grid_normal((n,), scale).clamp(-most, most).numpy()
    found = np.bincount(drawn + most, minlength=2 * most + 1)
    assert stats.chisquare(found, n * probabilities(scale, most)).pvalue > FALSE_ALARM


@pytest.mark.parametrize("scale", [2.0**16, 2.0**20, 2.0**34])
def test_fine_noise_is_normal(scale: float) -> None:
    x = ReproducibleNoise(b"fine").grid_normal((400_000,), scale).numpy()
    assert stats.kstest(x / scale, "norm").pvalue > FALSE_ALARM
    assert stats.chisquare(np.bincount(x % 16)).pvalue > FALSE_ALARM  # the last digits, too


def test_rare_values_are_as_frequent_as_they_should_be() -> None:
    scale, n = 2.0**20, 4_000_000
    x = ReproducibleNoise(b"tails").grid_normal((n,), scale).abs()
    for deviations in (3, 4, 4.5, 5):
        beyond = int((x > deviations * scale).sum())
        assert stats.binomtest(beyond, n, 2 * stats.norm.sf(deviations)).pvalue > FALSE_ALARM


def test_further_digits_are_rarely_needed() -> None:
    calls = 0

    def more() -> int:
        nonlocal calls
        calls += 1
        return 1

    first, second = ReproducibleNoise(b"rate").uniform(2_000_000).reshape(2, -1)
    rounded_normals(first, second, 2.0**20, more)
    assert calls <= 20  # at 165 µs each
