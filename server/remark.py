"""One remark on a claim: a condition that fails, an assumption, or something that is not covered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Remark:
    """A condition, an assumption, or something that is not covered.

    Attributes:
        code: which one; fixed.
        text: one plain sentence, clients and values filled in.
        clients: whom it concerns; empty for everybody.
        values: what the sentence mentions, by name.
    """

    code: str
    text: str
    clients: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the summary holds it: `clients` and `values` only where there are any."""
        found: dict[str, Any] = {"code": self.code, "text": self.text}
        if self.clients:
            found["clients"] = list(self.clients)
        if self.values:
            found["values"] = dict(self.values)
        return found
