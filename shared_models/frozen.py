"""What of a network doesn't learn, and so doesn't travel: everybody has to have the same."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from security.errors import UsageError
from shared_models.plan import Plan


def frozen_digest(model: nn.Module) -> str | None:
    """SHA-256 over names, shapes and numbers of all that isn't trained, in hexadecimal; None if all is."""
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    left = {name: value for name, value in model.state_dict().items() if name not in trained}
    if not left:
        return None
    found = hashlib.sha256()
    for name, value in sorted(left.items()):
        found.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        # As bytes: NumPy has no bfloat16.
        found.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_frozen(plan: Plan, model: nn.Module) -> str | None:
    """The digest of a plan's network; adapters on another one would be added up with ours, and nobody would notice.

    Raises:
        UsageError: the plan pins another.
    """
    found, pinned = frozen_digest(model), plan.model.frozen
    if pinned is not None and pinned != found:
        ours = "has none" if found is None else f"has '{found[:16]}...'"
        raise UsageError(
            f"model.frozen = '{pinned[:16]}...': the network '{plan.model.name}' here {ours}; use the same weights on "
            "all machines"
        )
    return found
