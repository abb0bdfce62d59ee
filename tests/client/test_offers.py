"""What a machine is asked for, held against what it has (the rest of an offer: `test_site.py`)."""

from __future__ import annotations

import pytest
import torch

from client.offers import OfferError, check_resources
from client.site_settings import ResourceSettings
from shared_models.faults import Fault
from shared_models.plan_file import plan_from


def test_a_plan_in_bfloat16_is_refused_where_the_device_has_none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    whole, half = (plan_from({"training": {"precision": name}}, where="test") for name in ("float32", "bfloat16"))
    check_resources(whole, ResourceSettings())
    check_resources(half, ResourceSettings(device="cpu"))
    with pytest.raises(OfferError, match=r"training\.precision = 'bfloat16': not on this machine's cuda") as refused:
        check_resources(half, ResourceSettings())
    assert refused.value.fault is Fault.POLICY_RESOURCES
