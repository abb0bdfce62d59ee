"""Poisson sampling: the batch that amplifies privacy (Abadi et al. 2016, arXiv 1607.00133, section 3.1)."""

from torch import Tensor

from privacy.noise import NoiseSource


def poisson_batch(n: int, sample_rate: float, source: NoiseSource) -> Tensor:
    """Draw one batch: every record enters independently with the public rate (rule 1).

    The size of the batch is random and private. It may be 0, and the step must be made all the same. Shuffled
    batches of a fixed size are not what the accountant prices.

    Args:
        n: number of records held, >= 0; private, and nothing but this draw may depend on it.
        sample_rate: probability that one record enters, in (0, 1].
        source: where the coins come from; secret wherever the noise is.

    Returns:
        Indices into the records, ascending, int64, of shape (batch size,).

    Raises:
        ValueError: if an argument is out of range.
    """
    if n < 0:
        raise ValueError(f"a batch can't be drawn from {n} records")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must be above 0 and at most 1, got {sample_rate}")
    return source.bernoulli(n, sample_rate)
