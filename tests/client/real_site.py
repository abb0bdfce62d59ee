"""Homes of sites as a real authority makes them, and what such a site is asked in tests."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message, RecordDict

from client.app import app
from client.site import DeployedSite, register_site
from privacy.ledger import Entry, Ledger
from security import enrolment, provision
from security.homes import AuthorityHome, SiteHome
from shared_models.flower_messages import act_as_server, client_context, rebuild
from shared_models.plan import Plan
from shared_models.plan_file import write_plan
from tests.client.conftest import content_of, question, through_the_wire

FEDERATION = "clinics"
SITE = "st-mary"
BUDGET = '[[budget]]\nunit = "record"\ntrust = "local"\nepsilon = 500.0\ndelta = 1e-5\n'
DATA = '[[data]]\nname = "csv"\nformat = "csv"\npath = "rows.csv"\n'
APPROVED = '[approval]\nplans = "policy"\n'


def settings_text(*parts: str, site: str = SITE, scope: str = "patients") -> str:
    """A site.toml of these tables."""
    return "\n".join((f'site = "{site}"\nbudget_scope = "{scope}"\n[server]\naddress = "127.0.0.1:1"', *parts)) + "\n"


def write_rows(path: Path, rows: int = 8, seed: int = 0, lines: Sequence[str] = ()) -> None:
    """A table as `tests.client.conftest.CARD` describes it, with more lines at its end."""
    generator = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["v", "w", "y"])
        for _ in range(rows):
            v, w = generator.uniform(-1, 1, 2)
            writer.writerow([v, w, "abc"[generator.integers(3)]])
        file.writelines(line + "\n" for line in lines)


@dataclass
class Authority:
    """An authority that approves whoever asks."""

    path: Path
    name: str = FEDERATION

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True)
        text = f'name = "{self.name}"\n[server]\naddress = "127.0.0.1:1"\nnames = ["localhost"]\n'
        (self.path / "federation.toml").write_text(text)
        self.home = AuthorityHome(self.path / "home")
        provision.found(self.home, self.path / "federation.toml", passphrase=None, now=time.time())

    def admit(self, path: Path, site: str = SITE, passphrase: str | None = None) -> SiteHome:
        """The home of a new site, with everything but data."""
        home = SiteHome(path)
        enrolment.make_keys(home, passphrase)
        asked = enrolment.request(home, federation=self.name, site=site, passphrase=passphrase)
        now = time.time()
        with provision.at_work(self.home, None) as office:
            granted = office.approve(asked, now=now)
        grant = enrolment.check_grant(home, granted, passphrase, now=now)
        enrolment.install(home, grant, passphrase)
        return home


@dataclass
class Running:
    """A site, and an app that works for it in this process."""

    home: SiteHome
    site: DeployedSite

    def ask(
        self,
        plan: Plan | str,
        content: RecordDict,
        kind: str = "train",
        *,
        state: RecordDict | None = None,
        **config: str,
    ) -> Message:
        """One message to the app and its reply, both as the wire carries them.

        `state` is the client's own, changed in place; without it the client remembers nothing.
        """
        text = plan if isinstance(plan, str) else write_plan(plan)
        act_as_server(1)
        request = Message(through_the_wire(content), 7, kind, group_id="1")
        context = client_context(
            run_id=1,
            node_id=7,
            client=self.site.name,
            config={"plan": text, "site": self.site.name, **config},
            state=RecordDict() if state is None else state,
        )
        return app(rebuild(request.metadata, request.content), context)

    def train(self, plan: Plan, number: int = 1, **more: Any) -> Message:
        return self.ask(plan, content_of(plan, number, **more))

    def evaluate(self, plan: Plan, number: int = 1) -> Message:
        return self.ask(plan, content_of(plan, number), "evaluate")

    def statement(self, plan: Plan, **known: Any) -> Message:
        return self.ask(plan, question(plan, **known), "query.statement")

    def restart(self) -> None:
        """As if the process had ended and begun again."""
        self.site.close()
        self.site = started(self.home).site

    def entries(self, scope: str = "patients") -> list[Entry]:
        """The ledger as somebody else reads it."""
        with Ledger.open(self.home.ledger, read_only=True) as ledger:
            return list(ledger.entries(scope)) if scope in ledger.scopes() else []

    def kinds(self) -> list[str]:
        """Kinds of the entries; of a refusal its reason."""
        return [str(entry.body.get("reason", entry.kind)) for entry in self.entries()]


def started(home: SiteHome) -> Running:
    """A site at work in this process."""
    site = DeployedSite.open(home)
    register_site(site)
    return Running(home, site)
