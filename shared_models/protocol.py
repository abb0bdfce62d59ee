"""The messages of a round: names of records and fields, and what each field is.

Server and client agree on these and on nothing else; a reply that holds any other field is refused at both ends.
"""

from __future__ import annotations

from typing import Final, Literal

Phase = Literal["train", "evaluate"]

# Names of the records in a message's content. Flower's strategies expect the first two.
ARRAYS: Final = "arrays"
CONFIG: Final = "config"
METRICS: Final = "metrics"
LEDGER: Final = "ledger"

# Fields of a train request's config.
ROUND: Final = "server-round"  # Flower's strategies write it
PLAN_DIGEST: Final = "plan-digest"
LAYOUT_DIGEST: Final = "layout-digest"
RUN: Final = "veil-run"  # the server's own id of the run; Flower's differs from start to start
CLIPPING_NORM: Final = "clipping-norm"  # of this round, where the plan's adapts; a float
COUNTED: Final = "counted"  # SCAFFOLD: the last round of this run whose model the client's update is in; 0 for none

# SCAFFOLD's record beside the model in a train request: the mean of all clients' variates, in the model's own form.
CONTROL: Final = "control"

# Fields of a train reply's metrics.
WEIGHT: Final = "num-examples"  # Flower's name for the aggregation weight; a public 1 under privacy
EPSILON: Final = "epsilon"  # spent so far in this run; computed from public constants alone
TRAIN_LOSS: Final = "train-loss"  # without privacy; under it only where plan and policy give up the claim
EXAMPLES: Final = "examples"  # likewise
CLIENTS: Final = "clients"  # inside of the server alone: how many clients' models a mean is of

# Fields of an evaluate reply's metrics: numbers of right and of all held-out examples, under privacy with noise.
CORRECT: Final = "correct"
TOTAL: Final = "total"

# The one array of an evaluate reply where the plan counts by class, in place of both: int64, of shape (classes,
# classes). Row: true class; column: guess.
CONFUSION: Final = "confusion"

# Fields of any reply's ledger record: the newest entry of the client's books, for the server to keep (an anchor).
HEAD_POSITION: Final = "position"
HEAD_HASH: Final = "hash"

# The one array of a train reply where the clipping norm adapts and a server adds the noise: float32, of shape
# (trained values + 1,). It is `privacy.adaptive_clipping.joint` of the update: the last value is the bit's.
JOINT: Final = "joint"

# Query by which a server learns the stable id behind a grid's node number.
IDENTIFY: Final = "query.identify"
CLIENT_ID: Final = "client-id"

# Query by which a server reminds a client of the newest entry it knows, and asks what was spent.
STATEMENT: Final = "query.statement"
STATEMENT_TEXT: Final = "statement"

# Query by which a server that adds the noise has every client pay for a whole run before the first round, where cohorts
# are secret: who is drawn later must not show in who has paid (rule 3). Its config is that of a train request of round
# 1, without the model; its reply's METRICS hold EPSILON alone.
ENROL: Final = "query.enrol"

# The last model, sent to everybody after the last round of a plan with personal models: config and model as in a train
# request. The reply says who heard it (CLIENT_ID), and nothing else, whatever came of it.
PERSONALISE: Final = "query.personalise"

# The phases of a secure sum (docs/secure-aggregation.md), in their order; all of one attempt. Flower wants an
# identifier after the dot. The masked phase, in which sites train, is a message of type "train" that holds
# SECURE_ATTEMPT and SECURE_MESSAGE beside what every train request holds (round, run, both digests, and the model).
SECURE_KEYS: Final = "query.secure_keys"
SECURE_SHARES: Final = "query.secure_shares"
SECURE_SURVIVORS: Final = "query.secure_survivors"
SECURE_UNMASK: Final = "query.secure_unmask"

# Fields of the config of every request of a secure sum, beside PLAN_DIGEST, LAYOUT_DIGEST, ROUND and RUN. The four
# queries' replies hold one field, SECURE_MESSAGE, in their CONFIG record.
SECURE_MESSAGE: Final = "secure-message"  # bytes, as `security.secure_sum` makes and reads them
SECURE_MODEL: Final = "secure-model"  # in SECURE_KEYS alone: `shared_models.secure_context.model_digest` of the model
SECURE_ATTEMPT: Final = "secure-attempt"  # bytes: the attempt's digest (32); in all requests but SECURE_KEYS

# The one array of a masked reply's ARRAYS, of shape (dimension,) and of the ring's own type, uint32 or uint64. Its
# METRICS and LEDGER are those of every private train reply: WEIGHT 1 and EPSILON; the newest entry of the books.
MASKED: Final = "masked"
