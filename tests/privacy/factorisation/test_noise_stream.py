"""Rule 9 for correlated noise: what leaves is a function of whole numbers with whole-number Gaussian noise.

Statistical tests of `SecretNoise` draw afresh every time; each is set to fail by chance once in a million runs.
"""

import copy
import math
import pickle

import numpy as np
import pytest
from scipy import stats

from privacy.accountant import epsilon
from privacy.factorisation import BandedMatrix, BandedNoise, Participation, Workload, decode, sensitivity, square_root
from privacy.factorisation.banded import DIGITS
from privacy.mechanisms import Gaussian
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise

FALSE_ALARM = 1e-6


def stream(
    *, rounds: int = 12, band: int = 4, separation: int = 5, dimensions: int = 50, noise: float = 1.0, clients: int = 40
) -> BandedNoise:
    return BandedNoise(
        matrix=square_root(Workload(rounds=rounds), band),
        participation=Participation(rounds=rounds, separation=separation, most=rounds),
        clipping_norm=3.0,
        noise_multiplier=noise,
        dimensions=dimensions,
        contributions=clients,
    )


def sums(source: BandedNoise, seed: int = 0) -> np.ndarray:
    """Exact sums of contributions, as large as they can be."""
    most = source.contributions * source.grid.steps
    return np.random.default_rng(seed).integers(-most, most + 1, (source.matrix.rounds, source.dimensions))


def drawn(source: BandedNoise, key: bytes) -> np.ndarray:
    """z: the noise that a stream with this key adds."""
    noise = ReproducibleNoise(key)
    scale = source.grid.noise_scale
    return np.stack([noise.grid_normal((source.dimensions,), scale).numpy() for _ in range(source.matrix.rounds)])


def published(source: BandedNoise, x: np.ndarray, noise: NoiseSource) -> np.ndarray:
    return np.stack([source.publish(t, row, noise) for t, row in enumerate(x, start=source.round)])


def product(matrix: BandedMatrix, x: np.ndarray) -> np.ndarray:
    """K x in Python's whole numbers."""
    rows = [sum(entry * x[t - i].astype(object) for i, entry in enumerate(matrix.row(t))) for t in range(matrix.rounds)]
    return np.array(rows)


@pytest.mark.parametrize("band", [1, 2, 4, 12])
@pytest.mark.parametrize("noise", [1e-6, 1.0, 100.0])
def test_what_is_published_is_a_function_of_the_noisy_product_alone_to_the_last_bit(band: int, noise: float) -> None:
    source = stream(band=band, separation=12, noise=noise)
    x = sums(source)
    y = product(source.matrix, x) + drawn(source, b"key")  # the mechanism: exact, beyond 64 bits if need be
    assert np.abs(y).max() < 2**62
    expected = decode(source.matrix, y.astype(np.int64))
    assert np.array_equal(published(source, x, ReproducibleNoise(b"key")), expected)


def test_it_is_within_half_a_step_of_the_exact_inverse_put_into_it() -> None:
    """K v = y but for what rounding v to whole steps does: at most half a diagonal entry."""
    source = stream()
    x = sums(source)
    y = product(source.matrix, x) + drawn(source, b"key")
    v = published(source, x, ReproducibleNoise(b"key"))
    off = product(source.matrix, v) - y
    for t in range(12):
        assert np.abs(off[t]).max() <= source.matrix.row(t)[0] // 2
    exact = np.linalg.solve(source.matrix.dense(), (y * 2.0**-DIGITS).astype(float))
    assert np.abs(v - exact).max() <= np.abs(np.linalg.inv(source.matrix.dense())).sum(axis=1).max() / 2 + 1e-3


def test_streamed_noise_is_the_product_with_the_inverse() -> None:
    source = stream(noise=0.5)
    z = drawn(source, b"k")
    v = published(source, np.zeros((12, 50), dtype=np.int64), ReproducibleNoise(b"k"))
    expected = np.linalg.inv(source.matrix.dense()) @ z * 2.0**-DIGITS
    assert np.abs(v - expected).max() <= 3  # steps of a clipping norm of 2^20


def test_the_scale_of_the_noise_is_no_less_than_what_is_priced() -> None:
    source = stream(noise=1.7)
    whole = sensitivity(source.matrix, source.participation) * 2**DIGITS * source.grid.steps
    assert 1.7 * whole <= source.grid.noise_scale <= 1.7 * whole * (1 + 1e-15)
    assert source.release().noise_multiplier == 1.7


def test_a_client_moves_the_product_by_no_more_than_the_sensitivity() -> None:
    """One client more, at its longest, in a heaviest pattern; in one direction, or in unlike ones."""
    source = stream(dimensions=3)
    x = np.zeros((12, 3), dtype=np.int64)
    for i, t in enumerate((0, 5, 10)):
        x[t, i] = source.grid.steps
    moved = math.sqrt(sum(int(value) ** 2 for value in product(source.matrix, x).ravel()))
    most = sensitivity(source.matrix, source.participation) * 2**DIGITS * source.grid.steps
    assert 0.999 * most <= moved <= most


@pytest.mark.parametrize("seed", [None, b"seed 7"])
def test_the_published_noise_has_the_variance_of_the_factorisation(seed: bytes | None) -> None:
    """For each round: chi-square with 20,000 degrees of freedom; and rounds are correlated as they should be."""
    source = stream(dimensions=20_000, noise=2.0)
    noise = SecretNoise() if seed is None else ReproducibleNoise(seed)
    v = published(source, np.zeros((12, 20_000), dtype=np.int64), noise).astype(float)
    inverse = np.linalg.inv(source.matrix.dense()) * 2.0**-DIGITS
    whitened = source.matrix.dense() @ v * (2.0**DIGITS / source.grid.noise_scale)
    tests = 12 + 12 + 1  # all of them together fail once in a million runs
    for t in range(12):
        deviation = source.grid.noise_scale * np.linalg.norm(inverse[t])
        low, high = stats.chi2.interval(1 - FALSE_ALARM / tests, 20_000)
        assert low <= np.sum((v[t] / deviation) ** 2) <= high
        assert low <= np.sum(whitened[t] ** 2) <= high
    # Products of independent normals have mean 0 and variance 1; near a thousandth off, a normal tail is generous.
    between = [float(whitened[s] @ whitened[t]) / math.sqrt(20_000) for t in range(12) for s in range(t)]
    assert max(map(abs, between)) <= stats.norm.isf(FALSE_ALARM / tests / 66 / 2) * 1.1


def test_a_restart_goes_on_as_if_nothing_had_happened_given_the_same_noise() -> None:
    whole, x = stream(), sums(stream())
    noise = ReproducibleNoise(b"one")
    expected = published(whole, x, noise)
    first, noise = stream(), ReproducibleNoise(b"one")
    start = published(first, x[:7], noise)
    second = stream()
    second.restore(first.state())
    assert second.round == 8
    assert np.array_equal(np.concatenate([start, published(second, x[7:], noise)]), expected)


def test_with_secret_noise_a_restart_draws_anew() -> None:
    first, x = stream(), sums(stream())
    published(first, x[:7], SecretNoise())
    again = stream()
    again.restore(first.state())
    assert not np.array_equal(first.publish(8, x[7], SecretNoise()), again.publish(8, x[7], SecretNoise()))


def test_a_round_redone_before_it_was_published_is_a_stream_of_its_own() -> None:
    """Whichever round 8 is published, later rounds are `decode` of it."""
    source, x = stream(), sums(stream())
    published(source, x[:7], ReproducibleNoise(b"a"))
    kept = source.state()
    source.publish(8, x[7], ReproducibleNoise(b"lost"))
    source.restore(kept)
    v8 = source.publish(8, x[7], ReproducibleNoise(b"b"))
    z = drawn(stream(), b"a")
    z[7] = ReproducibleNoise(b"b").grid_normal((50,), source.grid.noise_scale).numpy()
    y = (product(source.matrix, x) + z)[:8].astype(np.int64)
    assert np.array_equal(decode(source.matrix, y)[7], v8)


def test_a_state_that_is_damaged_or_anothers_is_refused() -> None:
    source = stream()
    published(source, sums(source)[:3], ReproducibleNoise(b"a"))
    state = source.state()
    for at in range(0, len(state), 97):
        damaged = bytearray(state)
        damaged[at] ^= 1
        with pytest.raises(ValueError, match="damaged or of another run"):
            stream().restore(bytes(damaged))
    for wrong in (b"", state[:-1], state + b"x", bytes(len(state))):
        with pytest.raises(ValueError, match="damaged or of another run"):
            stream().restore(wrong)
    for other in (stream(noise=2.0), stream(rounds=13), stream(separation=6)):
        with pytest.raises(ValueError, match="another run"):
            other.restore(state)
    with pytest.raises(ValueError, match="another run"):
        stream(dimensions=51).restore(state)


def test_a_round_is_published_once_and_in_order() -> None:
    source, zeros = stream(rounds=5), np.zeros(50, dtype=np.int64)
    noise = ReproducibleNoise(b"a")
    source.publish(1, zeros, noise)
    for wrong in (1, 3, 0):
        with pytest.raises(ValueError, match="due for round 2 of 5"):
            source.publish(wrong, zeros, noise)
    for t in range(2, 6):
        source.publish(t, zeros, noise)
    with pytest.raises(ValueError, match="due for none of 5"):
        source.publish(6, zeros, noise)


def test_what_is_no_sum_is_refused_and_changes_nothing() -> None:
    source = stream(clients=2)
    before = source.state()
    too_large = np.zeros(50, dtype=np.int64)
    too_large[3] = -2 * source.grid.steps - 1
    for wrong in (np.zeros(50), np.zeros(49, dtype=np.int64), np.zeros((50, 1), dtype=np.int64), too_large):
        with pytest.raises(ValueError, match="a sum"):
            source.publish(1, wrong, ReproducibleNoise(b"a"))
    assert source.state() == before
    source.publish(1, too_large + 1, ReproducibleNoise(b"a"))


def test_sums_that_could_overflow_are_refused_beforehand() -> None:
    with pytest.raises(ValueError, match="don't fit 64 bits"):
        stream(clients=1 << 40)
    with pytest.raises(ValueError, match=r"with 3 participations of a client and 50 parameters is out of range"):
        stream(noise=2.0**30)


def test_the_largest_sums_and_noise_fit_64_bits() -> None:
    """The bound that is checked is one: intermediate sums in Python's whole numbers stay below it."""
    source = stream(noise=100.0, clients=1000)
    x = sums(source)
    z = drawn(source, b"k").astype(object)
    v = published(source, x, ReproducibleNoise(b"k")).astype(object)
    for t in range(12):
        terms = [abs(entry * (x[t - i] - v[t - i] if i else x[t])) for i, entry in enumerate(source.matrix.row(t))]
        assert max(sum(terms) + abs(z[t])) <= source._largest() < 2**62


def test_a_run_costs_what_one_gaussian_release_costs_however_many_rounds() -> None:
    release = stream(noise=4.0, rounds=100, band=10, separation=10).release()
    assert release.parts() == (release, 1)
    spent, plain = epsilon([release], 1e-5), epsilon([Gaussian(noise_multiplier=4.0)], 1e-5)
    assert spent == plain
    assert release.participations == 10


def test_its_state_is_not_shown_or_copied() -> None:
    source = stream()
    published(source, sums(source)[:3], SecretNoise())
    assert repr(source) == "BandedNoise(round 4 of 12)"
    with pytest.raises(TypeError, match="secret"):
        pickle.dumps(source)
    with pytest.raises(TypeError, match="secret"):
        copy.copy(source)
