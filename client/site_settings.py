"""The whole of `site.toml`: the owner's policy, and beside it how this site runs.

The policy is what the ledger and statements name by its digest. Where the server is, which file holds the data, how
much of the machine may be used and when, is the owner's own business: it may change without a change of policy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from client.policy import SitePolicy, check_budgets
from security.addresses import split_address
from security.errors import UsageError
from shared_models import own
from shared_models.plan_data import located
from shared_models.plan_section import Count, CountOrZero, Section
from shared_models.toml_errors import read_section

DataFormat = Literal["csv", "hugging-face", "image-folder", "jsonl", "npz", "parquet"]
Device = Literal["auto", "cpu", "cuda", "mps"]

_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d"
_WINDOW = re.compile(rf"({_TIME})-({_TIME}|24:00)")
_PROXY = re.compile(r"http://[^\s/@]+:\d{1,5}/?")


def split_window(window: str) -> tuple[int, int]:
    """Begin and end of a window, in minutes after midnight; an end before the begin is one of the next day.

    Raises:
        ValueError: the text is none.
    """
    found = _WINDOW.fullmatch(window)
    if found is None:
        raise ValueError('should be HH:MM-HH:MM, e.g. "22:00-06:00"')
    begin, end = (60 * int(text[:2]) + int(text[3:]) for text in found.groups())
    if begin == end:
        raise ValueError('begins when it ends; for the whole day write "00:00-24:00", or no windows at all')
    return begin, end


def _address(text: str) -> str:
    if text:
        split_address(text)
    return text


def _window(text: str) -> str:
    split_window(text)
    return text


class ServerSettings(Section):
    """Where the federation's server is. The site calls it; nobody calls the site."""

    address: Annotated[str, AfterValidator(_address)] = Field("", description="HOST:PORT.")
    proxy: str = Field("", description="http://HOST:PORT of a proxy, for machines that reach nothing directly.")

    @model_validator(mode="after")
    def _plain_proxy(self) -> Self:
        if self.proxy and not _PROXY.fullmatch(self.proxy):  # an error over the key alone would repeat a password
            raise ValueError(
                'proxy should be http://HOST:PORT, e.g. "http://proxy.example.org:3128"; names and passwords have no '
                "place in this file"
            )
        return self


class DataSettings(Section):
    """A file of the owner's that answers the plans of one name. Public facts about it come from the plan's card."""

    name: str = Field(min_length=1, max_length=100, description="Plans whose data.name is this train on the file.")
    format: DataFormat = Field(description="csv, hugging-face, image-folder, jsonl, npz or parquet.")
    path: str = Field(min_length=1, description="File or folder; relative to site.toml.")
    person_column: str = Field(
        "", description="Column that names the people; plans that count people must mean this one. None: no such plans."
    )


class ApprovalSettings(Section):
    """Who says yes to a plan that the policy allows."""

    plans: Literal["ask", "policy"] = Field(
        "ask", description="ask: each plan waits for `veil client approve`; policy: whatever the policy allows runs."
    )


class ResourceSettings(Section):
    """How much of the machine may be used."""

    threads: Count = Field(1, description="Most threads a plan may ask for.")
    memory_mb: CountOrZero = Field(0, description="Most memory in MB; 0 for no limit.")
    niceness: int = Field(10, ge=0, le=19, description="How far others go first: 0 not at all, 19 always.")
    device: Device = Field("auto", description="Where plans that leave it open compute; others must ask for the same.")
    largest_message_mb: Annotated[int, Field(ge=1, le=1 << 20)] = Field(
        1024, description="Largest message that is taken, in MB."
    )


class ScheduleSettings(Section):
    """When work may begin. Nothing said: always, but on battery or on a metered network."""

    windows: tuple[Annotated[str, AfterValidator(_window)], ...] = Field(
        (), strict=False, description="Hours of each day, local time, e.g. 22:00-06:00; none: all."
    )
    on_battery: bool = Field(False, description="Whether to work on battery.")
    metered: bool = Field(False, description="Whether to work on a metered network, where the machine knows.")
    hook: str = Field("", description="A program of the owner's; work may begin while it exits with 0.")


class SiteSettings(SitePolicy):
    """The whole of `site.toml`."""

    server: ServerSettings = Field(default_factory=ServerSettings)
    data: tuple[DataSettings, ...] = Field(
        (), strict=False, description="One for each name of data that plans ask for."
    )
    models: dict[str, str] = Field(
        default_factory=dict,
        description="Networks of the owner's own, by the name that plans give: package.module:function or "
        "path/to/file.py:function.",
    )
    approval: ApprovalSettings = Field(default_factory=ApprovalSettings)
    resources: ResourceSettings = Field(default_factory=ResourceSettings)
    schedule: ScheduleSettings = Field(default_factory=ScheduleSettings)

    @property
    def policy(self) -> SitePolicy:
        """The part that ledger and statements name."""
        return SitePolicy(**{name: getattr(self, name) for name in SitePolicy.model_fields})

    def to_json(self) -> dict[str, Any]:
        """The policy as plain JSON values: the rest is no part of what is written down, nor of the digest."""
        return self.policy.to_json()

    def data_for(self, name: str) -> DataSettings | None:
        """The file that answers plans on data of this name, if the site has one."""
        return next((data for data in self.data if data.name == name), None)

    def server_address(self) -> tuple[str, int]:
        """Host and port of the server.

        Raises:
            UsageError: the file names none.
        """
        if not self.server.address:
            raise UsageError('site.toml: server.address is missing; give it, e.g. address = "fl.example.org:443"')
        return split_address(self.server.address)


def read_settings(path: Path) -> SiteSettings:
    """Read `site.toml`; paths in it become absolute. Whoever goes by it binds its `models` (`shared_models.own`).

    Raises:
        UsageError: it can't be read, or says something that can't be; one line for each thing that is wrong.
    """
    settings = read_section(SiteSettings, path)
    check_budgets(settings, path)
    names = [data.name for data in settings.data]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"{path}: two files for data.name = '{twice}'; keep one of them")
    folder = path.absolute().parent
    data = tuple(file.model_copy(update={"path": located(file.path, folder)}) for file in settings.data)
    hook = settings.schedule.hook
    schedule = settings.schedule.model_copy(update={"hook": located(hook, folder) if hook else ""})
    models = own.references(settings.models, folder)
    return settings.model_copy(update={"data": data, "schedule": schedule, "models": models})
