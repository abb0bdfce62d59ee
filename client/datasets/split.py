"""Train and test parts, and the bound on a person's records, both by a secret keyed hash (rules 6 and 10).

A record's side depends on its own content and the key alone: HMAC-SHA256 (RFC 2104) of its canonical bytes,
read as a number in [0, 1), is compared with the test fraction. An index or a count would make one record's
side depend on the others, so that adding a record could move another from train to test and the neighbouring
data sets of the privacy claim would differ in more than one record.
"""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from client.datasets.records import Records


def split(records: Records, *, key: bytes, test_fraction: float) -> tuple[Records, Records]:
    """Train and test parts.

    Identical records share a side. Where records name people, a person's records do, whatever they hold.

    Args:
        records: what to split.
        key: secret of the owner; whoever knows it can tell the side of a record they know.
        test_fraction: expected part of the records (or people) on the test side, in (0, 1).
    """
    if records.people is None:
        digests = (_digest(key, b"split record", content) for content in _contents(records))
    else:
        digests = (_digest(key, b"split person", str(person).encode()) for person in records.people)
    limit = int(test_fraction * 2**64)
    is_test = np.fromiter((int.from_bytes(digest[:8]) < limit for digest in digests), dtype=bool, count=len(records))
    return records.take(np.flatnonzero(~is_test)), records.take(np.flatnonzero(is_test))


def bound_rows_per_person(records: Records, *, key: bytes, most: int) -> Records:
    """At most `most` records of each person, in their order; the others are left out.

    Which ones stay is the order of their keyed hashes, so it depends on that person's records alone: adding
    or removing a person changes nothing for anybody else (rule 6).

    Raises:
        ValueError: the records name no people.
    """
    if records.people is None:
        raise ValueError("records without people cannot be bounded by person")
    rows_of: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
    for row, (person, content) in enumerate(zip(records.people, _contents(records), strict=True)):
        rows_of[str(person)].append((_digest(key, b"bound record", content), row))
    kept = [row for rows in rows_of.values() for _, row in sorted(rows)[:most]]
    return records.take(sorted(kept))


def _contents(records: Records) -> Iterator[bytes]:
    """Canonical bytes of each record: features as float32, then the label as int64, both little-endian."""
    # Adding zero turns -0.0 into 0.0: equal records must have equal bytes.
    x: npt.NDArray[np.float32] = (records.x.flatten(1).numpy() + np.float32(0)).astype("<f4", copy=False)
    y = records.y.numpy().astype("<i8", copy=False)
    return (x[row].tobytes() + y[row].tobytes() for row in range(len(records)))


def _digest(key: bytes, purpose: bytes, content: bytes) -> bytes:
    # The purpose keeps the two uses of one key apart: who stays under the bound says nothing about the side.
    return hmac.digest(key, b"veil " + purpose + b"\0" + content, "sha256")
