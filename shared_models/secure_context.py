"""What an attempt at a secure sum is bound to beside its run and round: plan, layout, and the model that is trained.

Both sides compute it; it is `Attempt.context`. Sites that were sent different models would train for different sums,
from which a server could pick one site's part (Pasquini, Francati & Ateniese 2022, arXiv 2111.07380). So the server
names the model before anybody has offered keys, sites that were told of different ones are in different attempts, and
each site checks what it is sent later. Under the plan's noise the epsilon holds either way; this guards the rest.
"""

from __future__ import annotations

import hashlib
from typing import Final

from flwr.app import ArrayRecord

from shared_models.plan import Plan
from shared_models.seeds import derive_key

_MODEL: Final = b"veil model 1\n"
_CONTEXT: Final = b"veil secure sum context 1\n"


def model_digest(arrays: ArrayRecord, norm: float | None = None) -> str:
    """SHA-256 of a model as it travels: names and bytes of its arrays, in order; in hexadecimal.

    Args:
        arrays: the model.
        norm: the round's clipping norm, where it adapts: clients that were told of different ones could be told apart
            as well.
    """
    found = hashlib.sha256(_MODEL)
    if norm is not None:
        found.update(b"norm " + norm.hex().encode())
    for name, array in arrays.items():
        for part in (name.encode(), array.data):
            found.update(len(part).to_bytes(8, "big"))
            found.update(part)
    return found.hexdigest()


def attempt_context(*, plan: str, layout: str, model: str) -> bytes:
    """`Attempt.context`: 32 bytes.

    Args:
        plan: digest of the plan.
        layout: digest of the layout.
        model: `model_digest` of what the sites will train.
    """
    return hashlib.sha256(_CONTEXT + f"{plan}\n{layout}\n{model}\n".encode()).digest()


def rotation_seed(plan: Plan, attempt: bytes, round_number: int) -> bytes | None:
    """The public seed by which the vectors of an attempt are turned before they are rounded; None if they aren't.

    Both sides compute it. It is new for each attempt, and known only once the attempt is: nobody chooses a vector for
    it. Where a simulation is to be reproducible it follows from the plan's seed, as the noise does.

    Args:
        plan: the resolved plan.
        attempt: digest of the attempt.
        round_number: of its round.
    """
    if not plan.secure.rotation:
        return None
    return derive_key(plan.seed, "rotation", round_number) if plan.privacy.noise == "reproducible" else attempt
