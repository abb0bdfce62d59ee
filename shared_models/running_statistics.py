"""Layers that keep running statistics: nothing learns them, so nobody sends them, and the shared model lacks them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from security.errors import UsageError


def check_no_running_statistics(model: nn.Module) -> None:
    """Refuse a network whose layers would gather means and variances while it trains.

    They are no parameters: each client would gather its own, and the model would be judged and handed over with the
    ones that it began with.

    Args:
        model: in training mode; a layer that stays in evaluation mode gathers nothing.

    Raises:
        UsageError: one line that names the first such layer and the mend.
    """
    for path, module in model.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.training:
            mend = "track_running_stats=False" if isinstance(module, _InstanceNorm) else "GroupNorm"
            raise UsageError(
                f"layer '{path}' ({type(module).__name__}) keeps running statistics, which never leave a client; "
                f"the shared model would be used without them; use {mend}"
            )
