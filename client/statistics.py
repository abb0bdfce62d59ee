"""What a client releases of a statistics plan: how many of its records lie in each bin, with noise.

Nothing here depends on a model, and nothing but the counts leaves: a client without records, or with a column where all
is missing, sends the same fields, as many and of the same type (rule 5).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from client.datasets.records import Records
from privacy.mechanisms import NoisyHistograms
from privacy.noise import NoiseSource
from shared_models.histograms import Counts, count_records
from shared_models.plan import Plan
from shared_models.plan_statistics import record_norm

LARGEST_COUNT = 1 << 24
"""Largest magnitude of a released count: whole numbers up to here are float32's own."""


def exact_counts(records: Records, plan: Plan) -> Counts:
    """How many records lie in each bin; not to be released as it is."""
    return count_records(plan, records.x.numpy(), records.y.numpy())


def noisy_counts(counts: Counts, release: NoisyHistograms, noise: NoiseSource) -> npt.NDArray[np.float32]:
    """Counts as they may leave under local trust: whole numbers, each with its own noise; any may be negative.

    They are cut to `LARGEST_COUNT`, which is post-processing.
    """
    drawn = counts + noise.grid_normal(counts.shape, release.noise).numpy()
    return np.asarray(np.clip(drawn, -LARGEST_COUNT, LARGEST_COUNT), dtype=np.float32)


def shortened_counts(counts: Counts, plan: Plan) -> npt.NDArray[np.float64]:
    """Counts as they go into a secure sum, where a record's vector is 1 long: a division, rounded once in float64."""
    return np.asarray(counts / record_norm(plan), dtype=np.float64)
