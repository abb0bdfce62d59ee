"""What a client puts into a secure sum, and what comes out of it (rules 2, 5 and 9)."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from privacy.example_sum_grid import ExampleSumGrid
from privacy.mechanisms import RoundedGaussianSum
from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from privacy.secure_encoding import Words, decode, encode, encode_gradients, rounded, turned, turned_back
from privacy.sum_grid import MOST_RETRIES, SumGrid, SumNoise

FALSE_ALARM = 1e-6
SEED = b"public, of one attempt"

Vector = npt.NDArray[np.float32]


def grid_of(dimension: int, *, noise: SumNoise = "discrete-gaussian", honest: int = 5, clip: float = 1.0) -> SumGrid:
    return SumGrid.of(clipping_norm=clip, noise_multiplier=1.0, honest=honest, dimension=dimension, noise=noise)


class Silent(ReproducibleNoise):
    """Coins as they are, but no noise: what is in the sum beneath it."""

    def discrete_gaussian(
        self, shape: Sequence[int], sigma: float, *, device: torch.device | str | None = None
    ) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)

    def grid_normal(
        self, shape: Sequence[int], scale: float, *, device: torch.device | str | None = None
    ) -> torch.Tensor:
        return torch.zeros(tuple(shape), dtype=torch.int64)


class Loaded(ReproducibleNoise):
    """Coins that always fall one way: rounding at its longest."""

    def __init__(self, coin: float) -> None:
        super().__init__(b"loaded")
        self._coin = coin
        self.calls = 0

    __slots__ = ("_coin", "calls")

    def uniform(self, n: int) -> npt.NDArray[np.float64]:
        self.calls += 1
        return np.full(n, self._coin)


def summed(words: Sequence[Words]) -> Words:
    """As a server adds them up: modulo 2^bits."""
    total = words[0].copy()
    for other in words[1:]:
        total += other
    return total


def clipped(update: Vector, norm: float) -> npt.NDArray[np.float64]:
    length = np.linalg.norm(update.astype(np.float64))
    return update.astype(np.float64) * min(1.0, norm / length if length else 1.0)


UPDATES: dict[str, Vector] = {
    "ordinary": np.random.default_rng(1).standard_normal(300).astype(np.float32),
    "one-hot": np.eye(1, 300, 7, dtype=np.float32)[0] * 100,
    "constant": np.full(300, -1.0, dtype=np.float32),
    "small": np.random.default_rng(2).standard_normal(300).astype(np.float32) * 1e-3,
    "zero": np.zeros(300, dtype=np.float32),
    "huge": np.full(300, np.finfo(np.float32).max, dtype=np.float32),
    "tiny": np.full(300, np.finfo(np.float32).smallest_subnormal, dtype=np.float32),
}


# --- there and back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("rotation", [None, SEED], ids=["as it is", "turned"])
def test_the_sum_of_what_is_encoded_is_the_sum_of_clipped_updates(bits: int, rotation: bytes | None) -> None:
    """Each client's rounding is off by less than a step a coordinate, turned or not by so much in length."""
    size, length = 300, 512 if rotation else 300
    grid, updates = grid_of(length), list(UPDATES.values())
    words = [
        encode(update, grid, bits=bits, noise=Silent(b"%d" % i), rotation=rotation)  # type: ignore[arg-type]
        for i, update in enumerate(updates)
    ]
    assert {word.dtype for word in words} == {np.dtype(f"uint{bits}")}
    assert {word.shape for word in words} == {(length,)}
    mean = decode(summed(words), grid, survivors=len(words), size=size, rotation=rotation)
    assert mean.dtype == np.float32
    expected = sum(clipped(update, grid.norm * grid.step) for update in updates) / len(words)
    off = np.abs(mean - expected) if rotation is None else np.linalg.norm(mean - expected)
    assert np.max(off) < grid.step * (1 if rotation is None else math.sqrt(length)) + 1e-7


@pytest.mark.parametrize("noise", ["rounded-gaussian", "discrete-gaussian", "skellam"])
def test_negative_sums_come_back(noise: SumNoise) -> None:
    """Elements above half the ring stand for negative numbers; with noise, the mean is near what it should be."""
    grid, update = grid_of(1000, noise=noise), np.full(1000, -1.0, dtype=np.float32)
    words = [encode(update, grid, bits=32, noise=SecretNoise()) for _ in range(20)]
    mean = decode(summed(words), grid, survivors=20, size=1000)
    deviation = grid.noise_share * grid.step / math.sqrt(20)
    off = (mean - clipped(update, grid.norm * grid.step)) / deviation
    # Twenty shares of noise, whose rounding is 10^-6 of them; false alarm once in a million.
    assert np.abs(off).max() < stats.norm.isf(FALSE_ALARM / 2000)


def test_a_sum_of_another_form_is_not_decoded() -> None:
    grid = grid_of(512)
    with pytest.raises(ValueError, match="none of 300"):
        decode(np.zeros(301, np.uint32), grid, survivors=3, size=300)
    with pytest.raises(ValueError, match="none of 300"):
        decode(np.zeros(300, np.uint32), grid, survivors=3, size=300, rotation=SEED)
    with pytest.raises(ValueError, match="over nobody"):
        decode(np.zeros(300, np.uint32), grid, survivors=0, size=300)
    with pytest.raises(ValueError, match="is flat"):
        encode(np.zeros((2, 3), np.float32), grid, bits=32, noise=SecretNoise())


# --- rule 9: sensitivity and bounds --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("rotation", [None, SEED], ids=["as it is", "turned"])
def test_rule_9_without_noise_nothing_is_longer_than_the_clipping_norm(name: str, rotation: bytes | None) -> None:
    """In whole numbers, exactly: what the accountant calls L2 sensitivity; and the L1 that follows from it."""
    grid = grid_of(512 if rotation else 300)
    for attempt in range(10):
        words = encode(UPDATES[name], grid, bits=64, noise=Silent(b"%d" % attempt), rotation=rotation)
        whole = words.view(np.int64)
        squares = sum(int(value) ** 2 for value in whole)
        assert squares <= grid.steps**2
        assert np.abs(whole).sum() <= grid.steps * min(math.sqrt(len(whole)), grid.steps)


@pytest.mark.parametrize("coin", [0.0, 0.5, 1 - 2.0**-53])
@pytest.mark.parametrize("shape", ["half-integers", "just below", "one-hot", "constant", "mixed signs"])
def test_rule_9_no_fall_of_the_coins_makes_it_longer(coin: float, shape: str) -> None:
    """Vectors that rounding away from zero makes longest, and coins that do just that."""
    d, most = 400, 40
    vector = {
        "half-integers": np.full(d, 1.5),
        "just below": np.full(d, 1 + 1e-9),
        "one-hot": np.eye(1, d)[0] * (most - 1e-9),
        "constant": np.full(d, most / math.sqrt(d) - 1e-9),
        "mixed signs": np.where(np.arange(d) % 2, 1.5, -1.5),
    }[shape]
    assert np.linalg.norm(vector) <= most
    noise = Loaded(coin)
    found = rounded(vector, most, noise)
    assert int(found @ found) <= most**2
    assert np.abs(found - vector).max() <= 1
    # One that is too long is drawn again, and not for ever.
    assert noise.calls in (1, MOST_RETRIES)


def test_rounding_gives_up_towards_zero() -> None:
    vector = np.array([1.5, 1.5, 2.25, 0.5])
    most = math.ceil(np.linalg.norm(vector))
    noise = Loaded(0.0)  # every coordinate up, to [2, 2, 3, 1]: too long
    assert rounded(vector, most, noise).tolist() == [1, 1, 2, 0]
    assert rounded(-vector, most, Loaded(1 - 2.0**-53)).tolist() == [-1, -1, -2, 0]
    assert noise.calls == MOST_RETRIES
    with pytest.raises(ValueError, match="longer than its rounding may be"):
        rounded(vector * 2, most, noise)


def test_a_rounding_is_hardly_ever_drawn_again() -> None:
    """By the bound once in 2^40; what is drawn again would bias the sum and take time that tells of the update."""

    class Counting(ReproducibleNoise):
        calls = 0

        def uniform(self, n: int) -> npt.NDArray[np.float64]:
            Counting.calls += 1
            return super().uniform(n)

    noise, generator = Counting(b"again"), np.random.default_rng(4)
    for dimension in (1, 3, 30, 3000):
        # The coarsest grid there is for each dimension: rounding matters most.
        grid = SumGrid.of(clipping_norm=1.0, noise_multiplier=1e3, honest=1, dimension=dimension)
        for _ in range(50):
            vector = generator.standard_normal(dimension)
            vector *= grid.norm / np.linalg.norm(vector) * (1 - 1e-12)
            rounded(vector, grid.steps, noise)
    assert Counting.calls == 200


@pytest.mark.parametrize("noise", ["rounded-gaussian", "discrete-gaussian", "skellam"])
def test_rule_9_all_of_it_stays_within_the_public_bound(noise: SumNoise) -> None:
    grid = grid_of(300, noise=noise)
    for update in UPDATES.values():
        whole = encode(update, grid, bits=32, noise=SecretNoise()).view(np.int32)
        assert np.abs(whole.astype(np.int64)).max() <= grid.bound


def test_rounding_is_unbiased() -> None:
    """Over 4000 draws, to five deviations' width at a false-alarm rate of one in a million over all coordinates."""
    vector = np.concatenate([np.linspace(-3, 3, 25), [0.5, -0.5, 1e-3, -1e-3]])
    noise, n = ReproducibleNoise(b"unbiased"), 4000
    total = sum(rounded(vector, 1000, noise) for _ in range(n))
    chance = vector - np.floor(vector)
    deviation = np.sqrt(chance * (1 - chance) * n)
    assert (np.abs(total - n * vector) <= stats.norm.isf(FALSE_ALARM / 60) * deviation + 1e-9 * n).all()


# --- rule 5: no data-dependent form --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rotation", [None, SEED], ids=["as it is", "turned"])
def test_rule_5_an_update_that_is_not_finite_counts_as_zeros(bad: float, rotation: bytes | None) -> None:
    update = UPDATES["ordinary"].copy()
    update[5] = bad
    grid = grid_of(512 if rotation else 300)

    def encoded(vector: Vector) -> Words:
        return encode(vector, grid, bits=32, noise=ReproducibleNoise(b"same"), rotation=rotation)

    assert (encoded(update) == encoded(UPDATES["zero"])).all()
    assert encoded(update).any()  # its share of noise is there all the same


def test_an_update_is_left_as_it_was() -> None:
    update = UPDATES["ordinary"].copy()
    encode(update, grid_of(300), bits=32, noise=SecretNoise())
    assert (update == UPDATES["ordinary"]).all()


# --- rule 2: the noise of a sum ------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", ["rounded-gaussian", "discrete-gaussian", "skellam"])
@pytest.mark.parametrize("dropouts", [0, 1, 4])
def test_rule_2_the_noise_of_a_sum_has_the_variance_that_is_claimed(noise: SumNoise, dropouts: int) -> None:
    """Ten clients, of whom six must be left (five honest ones and a corrupt one): the honest among them have what is
    priced or more. Chi-square; false alarm once in a million."""
    clients, honest, d = 10, 5, 20_000
    grid = grid_of(d, noise=noise, honest=honest)
    survivors = clients - dropouts
    zero = np.zeros(d, dtype=np.float32)
    words = [encode(zero, grid, bits=32, noise=ReproducibleNoise(b"%d" % i)) for i in range(survivors)]
    values = summed(words).view(np.int32).astype(np.float64)
    claimed = grid.noise_share**2 * survivors
    statistic = float(values @ values) / claimed
    # Chi-square with d degrees: the noise is Gaussian to the fourth moment.
    assert stats.chi2.ppf(FALSE_ALARM / 2, d) < statistic < stats.chi2.isf(FALSE_ALARM / 2, d)
    assert abs(values.mean()) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(claimed / d)
    # With one corrupt among them that added nothing, the honest still have what the plan's multiplier says: C of noise.
    assert grid.noise_share**2 * (survivors - 1) * grid.step**2 >= 1.0 - 1e-9


def test_two_clients_noises_have_nothing_in_common() -> None:
    grid, zero = grid_of(20_000), np.zeros(20_000, dtype=np.float32)
    one, other = (encode(zero, grid, bits=32, noise=SecretNoise()).view(np.int32) / grid.noise_share for _ in range(2))
    assert abs(float(one @ other)) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(20_000)


# --- the rotation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 300, 1024])
def test_turning_keeps_lengths_and_is_undone(size: int) -> None:
    vector = np.random.default_rng(5).standard_normal(size) * 1e3
    there = turned(vector, SEED)
    assert len(there) == 1 << (size - 1).bit_length()
    assert np.linalg.norm(there) == pytest.approx(np.linalg.norm(vector), rel=1e-12)
    back = turned_back(there, SEED)
    assert np.abs(back[:size] - vector).max() < 1e-9
    assert np.abs(back[size:]).max(initial=0) < 1e-9


def test_turning_is_linear_so_that_sums_are_turned_sums() -> None:
    one, other = np.random.default_rng(6).standard_normal((2, 300))
    assert np.allclose(turned(one, SEED) + turned(other, SEED), turned(one + other, SEED), atol=1e-12)


def test_turning_is_hadamard_s_transform_of_random_signs() -> None:
    from scipy.linalg import hadamard

    columns = np.stack([turned(row, SEED) for row in np.eye(16)], axis=1)
    signs = columns[0] * 4
    assert set(np.round(signs, 12)) == {-1.0, 1.0}
    assert np.allclose(columns, hadamard(16) / 4 * signs, atol=1e-12)


def test_turning_spreads_a_vector_evenly() -> None:
    """A one-hot vector becomes flat; any other has no coordinate beyond what chance allows (once in a million)."""
    d = 4096
    flat = turned(np.eye(1, d, 17)[0], SEED)
    assert np.allclose(np.abs(flat), 1 / math.sqrt(d))
    spiky = np.where(np.arange(d) < 64, 1 / 8, 0.0)
    assert np.abs(turned(spiky, SEED)).max() < math.sqrt(2 * math.log(2 * d / FALSE_ALARM) / d)


def test_unlike_seeds_turn_unlike_ways() -> None:
    seeds = [SEED, b"another", b""]
    vectors = [turned(np.ones(1024), seed) for seed in seeds]
    for one, other in itertools.combinations(vectors, 2):
        # Correlations of independent signs; false alarm once in a million each.
        assert abs(float(one @ other)) / 1024 < stats.norm.isf(FALSE_ALARM / 2) / math.sqrt(1024)


def test_the_same_noise_gives_the_same_words() -> None:
    grid = grid_of(300)

    def encoded(noise: NoiseSource) -> Words:
        return encode(UPDATES["ordinary"], grid, bits=32, noise=noise)

    assert (encoded(ReproducibleNoise(b"a")) == encoded(ReproducibleNoise(b"a"))).all()
    assert (encoded(SecretNoise()) != encoded(SecretNoise())).any()


# --- sums of clipped gradients (joint steps) -----------------------------------------------------------------------


def joint_grid(dimension: int = 300, *, honest: int = 5, noise_multiplier: float = 1.0) -> ExampleSumGrid:
    return ExampleSumGrid.of(
        clipping_norm=0.7,
        noise_multiplier=noise_multiplier,
        honest=honest,
        dimension=dimension,
        batch_size=40.0,
        clients=12,
    )


def gradients(clients: int, dimension: int = 300) -> list[npt.NDArray[np.float64]]:
    return [np.random.default_rng(i).standard_normal(dimension) * (i - clients / 2) for i in range(clients)]


@pytest.mark.parametrize("bits", [32, 64])
def test_the_sum_of_what_is_encoded_is_the_sum_of_gradients(bits: int) -> None:
    """Each client rounds once: half a step each, and no more."""
    grid, totals = joint_grid(), gradients(12)
    words = [encode_gradients(total, grid, bits=bits, noise=Silent(b"none")) for total in totals]  # type: ignore[arg-type]
    assert {word.dtype for word in words} == {np.dtype(f"uint{bits}")}
    mean = decode(summed(words), grid, survivors=12, size=300)
    assert mean.dtype == np.float32
    exact = np.sum(totals, axis=0) / 12
    assert np.abs(mean - exact).max() <= grid.step / 2 + np.abs(exact).max() * 2.0**-24


def test_gradients_are_left_as_they_were() -> None:
    total = gradients(3)[0]
    before = total.copy()
    encode_gradients(total, joint_grid(), bits=32, noise=SecretNoise())
    assert (total == before).all()


def test_rule_9_a_sum_beyond_the_public_bound_is_clamped() -> None:
    grid = joint_grid()
    assert grid.most * grid.step == 40 * 0.7
    total = np.concatenate([np.full(100, 1e30), np.full(100, -1e30), np.full(100, 28.0)])
    words = encode_gradients(total, grid, bits=32, noise=Silent(b"none"))
    assert np.unique(words.view(np.int32)).tolist() == [-grid.most, grid.most]
    with_noise = encode_gradients(total, grid, bits=32, noise=SecretNoise()).view(np.int32)
    assert np.abs(with_noise.astype(np.int64)).max() <= grid.bound


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_sum_of_gradients_that_is_not_finite_is_an_error_of_the_program(bad: float) -> None:
    """Gradients that are not finite were left out before; none may get here, and none leaves."""
    total = gradients(3)[0]
    total[7] = bad
    with pytest.raises(ValueError, match="300 finite values"):
        encode_gradients(total, joint_grid(), bits=32, noise=SecretNoise())
    with pytest.raises(ValueError, match="300 finite values"):
        encode_gradients(np.zeros(299), joint_grid(), bits=32, noise=SecretNoise())
    with pytest.raises(ValueError, match="300 finite values"):
        encode_gradients(np.zeros((1, 300)), joint_grid(), bits=32, noise=SecretNoise())


@pytest.mark.parametrize("there", [5, 8, 12])
def test_rule_2_the_noise_of_a_joint_step_has_the_variance_that_is_claimed(there: int) -> None:
    """The released sum over a cohort of 12 that counts on 5: chi-square; false alarm once in a million."""
    d = 20_000
    grid = joint_grid(d, honest=5, noise_multiplier=1.5)
    totals = gradients(there, d)
    words = [
        encode_gradients(total, grid, bits=32, noise=ReproducibleNoise(b"%d" % i)) for i, total in enumerate(totals)
    ]
    noise = summed(words).view(np.int32) - np.sum(totals, axis=0) / grid.step
    variance = there * (grid.noise_share**2 + 1 / 12) + there / 12  # rounded noise, and each sum's own rounding
    statistic = float(noise @ noise) / variance
    assert stats.chi2.ppf(FALSE_ALARM / 2, d) < statistic < stats.chi2.isf(FALSE_ALARM / 2, d)
    assert abs(noise.mean()) < stats.norm.isf(FALSE_ALARM / 2) * math.sqrt(variance / d)
    # Five of them have the multiplier that is priced.
    release = RoundedGaussianSum(noise_share=grid.noise_share, honest=5, l2_sensitivity=grid.sensitivity(), dimension=d)
    assert release.noise_multiplier == pytest.approx(1.5, rel=1e-12)
    assert there * grid.noise_share**2 >= (1.5 * grid.sensitivity()) ** 2 * (1 - 1e-12)


def test_noise_does_not_hang_on_what_is_beneath_it() -> None:
    """The same draws, whatever the gradients: nobody can tell an empty client by them."""
    grid = joint_grid()

    def encoded(total: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        return encode_gradients(total, grid, bits=32, noise=ReproducibleNoise(b"same")).view(np.int32)

    steps = np.rint(gradients(3)[0] / grid.step).astype(np.int32)
    assert (encoded(gradients(3)[0]) - encoded(np.zeros(300)) == steps).all()
    assert encoded(np.zeros(300)).any()
