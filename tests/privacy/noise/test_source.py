"""Rule 3 of the principles: noise that can be known or repeated protects nobody.

Statistical tests of `SecretNoise` draw afresh every time; each is set to fail by chance once in a million runs.
`ReproducibleNoise` makes the same tests deterministic.
"""

import contextlib
import copy
import math
import os
import pickle
import random
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from privacy.noise import NoiseSource, ReproducibleNoise, SecretNoise
from privacy.noise import source as source_module

FALSE_ALARM = 1e-6
Z = float(stats.norm.isf(FALSE_ALARM / 2))
N = 400_000

Make = Callable[[], NoiseSource]
each_source = pytest.mark.parametrize(
    "make", [SecretNoise, lambda: ReproducibleNoise(b"seed 7, client 3")], ids=["secret", "reproducible"]
)


def normals(source: NoiseSource, n: int = N) -> np.ndarray:
    """Standard normal values, but for the grid of 2^-20."""
    return source.grid_normal((n,), 2.0**20).numpy() * 2.0**-20


@each_source
def test_moments_of_the_standard_normal(make: Make) -> None:
    x = normals(make())
    # The k-th power has mean m(k) and variance m(2k) - m(k)^2, where m(2k) = (2k - 1)!!.
    for power, mean, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(np.mean(x**power) - mean) < Z * math.sqrt(variance / N), power


@each_source
def test_distribution(make: Make) -> None:
    source = make()
    assert stats.kstest(normals(source), "norm").pvalue > FALSE_ALARM
    assert stats.kstest(source.uniform(N), "uniform").pvalue > FALSE_ALARM


@each_source
def test_tails_up_to_five_deviations(make: Make) -> None:
    x = np.abs(np.concatenate([normals(source) for source in [make()] for _ in range(5)]))
    for deviations in (1, 2, 3, 4, 5):
        beyond = int(np.sum(x > deviations))
        expected = 2 * stats.norm.sf(deviations)
        assert stats.binomtest(beyond, len(x), expected).pvalue > FALSE_ALARM, deviations


@each_source
def test_no_value_tells_of_another(make: Make) -> None:
    x = normals(make())
    half = 8192  # the two values of one Box-Muller pair lie this far apart
    for lag in (1, 2, half, half - 1, 2 * half):
        for y in (x, x**2 - 1):  # squares show what plain correlation misses
            z = np.mean(y[lag:] * y[:-lag]) / np.var(y) * math.sqrt(N - lag)
            assert abs(z) < Z, lag


@each_source
def test_uniforms_are_multiples_of_2_to_the_minus_53(make: Make) -> None:
    u = make().uniform(N)
    assert u.dtype == np.float64
    assert u.min() >= 0
    assert u.max() < 1
    assert np.array_equal(u * 2.0**53, np.floor(u * 2.0**53))
    assert abs(np.mean(np.floor(u * 2.0**53) % 2) - 0.5) < Z * 0.5 / math.sqrt(N)  # down to the last bit
    assert len(np.unique(u[:100_000])) == 100_000


@pytest.mark.parametrize("make", [lambda i: SecretNoise(), lambda i: ReproducibleNoise(b"seed 7, client %d" % i)])
def test_the_noise_of_clients_is_independent(make: Callable[[int], NoiseSource]) -> None:
    n, clients = 50_000, 8
    x = np.stack([normals(make(i), n) for i in range(clients)])
    pairs = clients * (clients - 1) // 2
    limit = float(stats.norm.isf(FALSE_ALARM / 2 / (4 * pairs))) / math.sqrt(n)
    for values in (x, (x**2 - 1) / math.sqrt(2)):
        for other in (values, np.roll(values, 1, axis=1)):  # nor is one the other, a draw later
            correlations = values @ other.T / n
            assert np.abs(correlations[~np.eye(clients, dtype=bool)]).max() < limit
    assert len({draw[:3].tobytes() for draw in x}) == clients


def test_no_shared_seed_has_any_influence() -> None:
    """Defect 7 of Opacus: clients that share a torch seed share their noise."""
    draws = []
    for _ in range(2):
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        draws.append((normals(SecretNoise(), 10), normals(ReproducibleNoise(b"x"), 10)))
    (secret, reproducible), (secret_again, reproducible_again) = draws
    assert not np.isin(secret, secret_again).any()
    assert np.array_equal(reproducible, reproducible_again)


def test_other_generators_are_left_alone() -> None:
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    normals(SecretNoise(), 100)
    SecretNoise().bernoulli(100, 0.5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


def test_secret_noise_takes_no_seed() -> None:
    with pytest.raises(TypeError):
        SecretNoise(7)  # type: ignore[call-arg]


def test_the_stream_is_aes_256_in_counter_mode_under_a_key_of_the_operating_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = bytes(range(32))
    asked: list[int] = []
    monkeypatch.setattr(os, "urandom", lambda n: asked.append(n) or key)
    words = SecretNoise().uniform(6)
    block_cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(block_cipher.update(counter.to_bytes(16, "big")) for counter in range(3))
    assert asked == [32]
    assert np.array_equal(words, (np.frombuffer(blocks, dtype="<u8") >> 11) * 2.0**-53)


@each_source
def test_a_stream_never_goes_back(make: Make) -> None:
    source = make()
    drawn = np.concatenate([source.uniform(1000), source.uniform(1000)])
    assert len(np.unique(drawn)) == 2000


def test_threads_never_share_a_draw() -> None:
    source, draws = SecretNoise(), []

    def draw() -> None:
        for _ in range(100):
            with contextlib.suppress(RuntimeError):  # refused, while another thread draws
                draws.append(source.uniform(20_000)[:50])

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    drawn = np.concatenate(draws)
    assert len(np.unique(drawn)) == len(drawn) > 0


@each_source
def test_a_source_is_never_copied_and_shows_no_key(make: Make) -> None:
    source = make()
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="can't be copied or pickled"):
            duplicate(source)
    assert repr(source) in ("SecretNoise()", "ReproducibleNoise()")
    assert not hasattr(source, "__dict__")
    held = [getattr(source, name) for cls in type(source).__mro__ for name in getattr(cls, "__slots__", ())]
    assert not any(isinstance(value, bytes | bytearray | str) for value in held)


def in_a_fork(work: Callable[[], bytes]) -> bytes:
    """What `work` returns in a child process; a failure there is returned by name."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            result = work()
        except BaseException as error:
            result = type(error).__name__.encode()
        os.write(writer, result)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        result = pipe.read()
    os.waitpid(child, 0)
    return result


@pytest.mark.parametrize("process_ids", ["change", "come round again"])
def test_a_forked_process_gets_a_stream_of_its_own(process_ids: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if process_ids == "come round again":
        monkeypatch.setattr(source_module.os, "getpid", lambda: 1)
    source = SecretNoise()
    source.uniform(3)
    children = [in_a_fork(lambda: source.uniform(8).tobytes()) for _ in range(2)]
    here = source.uniform(8).tobytes()
    assert [len(draw) for draw in children] == [64, 64]
    assert len({here, *children}) == 3


def test_a_fork_that_python_did_not_see_is_noticed_by_its_process_id(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = iter([bytes(32), bytes([1]) * 32])
    monkeypatch.setattr(os, "urandom", lambda _: next(keys))
    source = SecretNoise()
    monkeypatch.setattr(source_module.os, "getpid", lambda: 1)
    source.uniform(1)
    assert next(keys, None) is None


def test_reproducible_noise_refuses_to_go_on_in_a_fork() -> None:
    source = ReproducibleNoise(b"x")
    source.uniform(3)
    assert in_a_fork(lambda: source.uniform(8).tobytes()) == b"RuntimeError"
    assert len(source.uniform(8)) == 8


def test_reproducible_noise_repeats_for_equal_material_only() -> None:
    assert np.array_equal(normals(ReproducibleNoise(b"a"), 9), normals(ReproducibleNoise(b"a"), 9))
    assert not np.isin(normals(ReproducibleNoise(b"a"), 9), normals(ReproducibleNoise(b"a "), 9)).any()
    with pytest.raises(ValueError, match="key material"):
        ReproducibleNoise(b"")


def test_only_secret_noise_says_that_it_is_secret() -> None:
    assert SecretNoise().is_secret
    assert not ReproducibleNoise(b"x").is_secret


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 0, 4), (40_001,)])
@pytest.mark.parametrize("kind", ["grid_normal", "discrete_gaussian"])
def test_shape_and_type(kind: str, shape: tuple[int, ...]) -> None:
    x = getattr(SecretNoise(), kind)(shape, 2.0**15, device="cpu")
    assert x.shape == shape
    assert x.dtype == torch.int64
    assert len(x.unique()) >= 0.6 * x.numel()  # more than 100,000 values are likely


@pytest.mark.parametrize("kind", ["grid_normal", "discrete_gaussian"])
@pytest.mark.parametrize("scale", [0.0, -1.0, 2.0**34 * 1.001, math.inf, math.nan])
def test_a_scale_out_of_range_is_refused(kind: str, scale: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        getattr(SecretNoise(), kind)((1,), scale)


class Extreme(ReproducibleNoise):
    """Uniforms at the ends of their range; notes how many are asked for at once."""

    __slots__ = ("asked", "value")

    def uniform(self, n: int) -> np.ndarray:
        self.asked = max(n, getattr(self, "asked", 0))
        return np.full(n, self.value)


@pytest.mark.parametrize("value", [0.0, 1 - 2.0**-53])
def test_the_ends_of_the_uniform_range_give_finite_noise(value: float) -> None:
    source = Extreme(b"x")
    source.value = value
    assert np.abs(normals(source, 4)).max() < 13  # further digits make it more than 53 bits' 8.6


def test_large_draws_are_made_in_small_pieces() -> None:
    source = Extreme(b"x")
    source.value = 0.5
    source.grid_normal((300_000,), 1.0)
    assert len(source.bernoulli(300_000, 0.5)) == 0  # a coin of rate 1/2 shows the lower half of the uniforms only
    assert source.asked <= 16_384


@each_source
def test_coins_fall_at_their_rate(make: Make) -> None:
    source = make()
    for rate in (1e-4, 0.01, 0.3, 0.999):
        chosen = source.bernoulli(N, rate)
        assert chosen.dtype == torch.int64
        assert (chosen.diff() > 0).all()
        assert chosen.min() >= 0
        assert chosen.max() < N
        assert stats.binomtest(len(chosen), N, rate).pvalue > FALSE_ALARM
    assert torch.equal(source.bernoulli(20_000, 1.0), torch.arange(20_000))
    assert len(source.bernoulli(20_000, 1e-300)) == 0
    assert source.bernoulli(0, 0.5).shape == (0,)


def test_a_coin_never_falls_more_often_than_is_accounted_for() -> None:
    rate = 0.1  # no multiple of 2^-53: the next one above would be more than the accountant's rate
    source = Extreme(b"x")
    source.value = math.floor(rate * 2**53) * 2.0**-53
    assert source.value < rate
    assert len(source.bernoulli(5, rate)) == 0
    source.value -= 2.0**-53
    assert len(source.bernoulli(5, rate)) == 5
