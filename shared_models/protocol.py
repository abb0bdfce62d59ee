"""The messages of a round: names of records and fields, and what each field is.

Server and client agree on these and on nothing else; a reply that holds any other field is refused at both ends.
"""

from __future__ import annotations

from typing import Final

# Names of the records in a message's content. Flower's strategies expect the first two.
ARRAYS: Final = "arrays"
CONFIG: Final = "config"
METRICS: Final = "metrics"

# Fields of a train request's config.
ROUND: Final = "server-round"  # Flower's strategies write it
PLAN_DIGEST: Final = "plan-digest"
LAYOUT_DIGEST: Final = "layout-digest"

# Fields of a train reply's metrics.
WEIGHT: Final = "num-examples"  # Flower's name for the aggregation weight; a public 1 under privacy
EPSILON: Final = "epsilon"  # spent so far in this run; computed from public constants alone
TRAIN_LOSS: Final = "train-loss"  # only without privacy

# Query by which a server learns the stable id behind a grid's node number.
IDENTIFY: Final = "query.identify"
CLIENT_ID: Final = "client-id"
