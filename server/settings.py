"""The server's settings: `server.toml` in its home, strict as a plan is.

What belongs to the machine stands here; what is computed stands in the plan. None of it changes a result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from security.errors import UsageError
from security.frames import LARGEST_MESSAGE
from shared_models import own
from shared_models.plan_section import Count, Positive, Section
from shared_models.toml_errors import read_section

_PLACE = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(?P<port>[0-9]{1,5})")
_LARGEST_PORT: Final = 65535


def _place(text: str) -> str:
    found = _PLACE.fullmatch(text)
    if found is None or int(found["port"]) > _LARGEST_PORT:
        raise ValueError("give HOST:PORT, e.g. '0.0.0.0:8443' or '[::]:8443'")
    return text


def _one_or_more(given: object) -> object:
    """One table where several may stand."""
    return (given,) if isinstance(given, Mapping) else given


class WaitSettings(Section):
    """Whom a run waits for before it begins."""

    sites: Literal["all"] | Count = Field(
        "all", description="How many must have accepted the plan: all of the roster, or as many."
    )
    seconds: Positive = Field(86400.0, description="Patience for them to come and for their owners to approve.")


class MetricsSettings(Section):
    """Figures for Prometheus, and the server's health, for programs on this machine."""

    port: Annotated[int, Field(ge=0, le=_LARGEST_PORT)] = Field(0, description="Port on 127.0.0.1; 0 for none.")


class TrackingSettings(Section):
    """Trackers of experiments that are told of each run what metrics.jsonl and summary.json say in numbers."""

    tensorboard: str = Field("", description="Folder for TensorBoard, relative to server.toml; empty for none.")
    mlflow: str = Field("", description="Folder, or URI of a tracking server or database; empty for none.")
    wandb: str = Field("", description="offline:FOLDER or online:PROJECT; empty for none.")

    @property
    def asked(self) -> tuple[str, ...]:
        """As `server.tracking` is asked for them."""
        return tuple(f"{kind}={where}" for kind, where in self.model_dump().items() if where)


class TestDataSettings(Section):
    """The server's own records, on which it judges the model."""

    __test__ = False  # the name is not a test's

    name: str = Field(description="The plans whose data.name is this.")
    format: Literal["csv", "hugging-face", "image-folder", "jsonl", "npz", "parquet"] = Field(
        "csv", description="How the file is read."
    )
    path: str = Field(min_length=1, description="File or folder; relative to server.toml.")


class ServerSettings(Section):
    """The whole of `server.toml`."""

    federation: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$", description="Name of the federation.")
    address: Annotated[str, AfterValidator(_place)] = Field(
        "0.0.0.0:8443", description="Where sites dial to: HOST:PORT of this machine."
    )
    deadline_seconds: Positive = Field(
        3600.0, description="How long a site may take for an answer, where the plan has no round_timeout."
    )
    beat_seconds: Annotated[float, Field(ge=0.05, le=3600)] = Field(
        10.0, description="Seconds between two signs of life; who gives none for three of them is gone."
    )
    largest_message: Annotated[Count, Field(le=LARGEST_MESSAGE >> 20)] = Field(
        1024, description="Largest message in MiB, either way."
    )
    most_sites: Count = Field(1024, description="Most sites that are connected at once.")
    wait: WaitSettings = Field(default_factory=WaitSettings)
    metrics: MetricsSettings = Field(default_factory=MetricsSettings)
    tracking: TrackingSettings = Field(default_factory=TrackingSettings)
    models: dict[str, str] = Field(
        default_factory=dict,
        description="Networks of one's own, by the name that plans give: package.module:function or "
        "path/to/file.py:function.",
    )
    data: Annotated[tuple[TestDataSettings, ...], BeforeValidator(_one_or_more)] = Field(
        (), strict=False, description="The server's own test data, one table a data set."
    )

    def test_data(self, name: str) -> TestDataSettings | None:
        """The server's own records for plans with this `data.name`."""
        return next((one for one in self.data if one.name == name), None)


def read_settings(path: Path) -> ServerSettings:
    """Read `server.toml`; the paths in it come back absolute. Whoever goes by it binds its `models`.

    Raises:
        UsageError: it can't be read, or says something else; one line for each thing that is wrong.
    """
    settings = read_section(ServerSettings, path)
    names = [one.name for one in settings.data]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: data: two tables for the data set '{twice}'; keep one of them")
    located = tuple(one.model_copy(update={"path": str(_located(one.path, path.parent))}) for one in settings.data)
    changes: dict[str, Any] = {"data": located, "models": own.references(settings.models, path.parent)}
    return settings.model_copy(update=changes)


def _located(path: str, folder: Path) -> Path:
    return (folder / Path(path).expanduser()).absolute()
