"""The table [features] of a plan: a frozen, public feature map between the data and the network."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from shared_models.plan_section import Section


class FeaturesPlan(Section):
    """What the network sees of an image."""

    name: str = Field("scattering-patches", description="Feature map: one of those `veil features list` shows.")
    source: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="In a resolved plan: SHA-256 over the map's recipe and the public images it is learnt from."
    )
