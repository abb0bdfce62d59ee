"""A federation with one site, berlin: homes with real keys and certificates, and records to train on."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from client.dialing import GrpcDialer
from security import enrolment, provision
from security.credentials import channel_credentials, channel_options
from security.homes import AuthorityHome, ServerHome, SiteHome
from shared_models.plan import Plan


class Pilot:
    """A federation in a folder."""

    def __init__(self, folder: Path, federation: str = "pilot") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.authority = AuthorityHome(folder / "authority")
        self.server = ServerHome(folder / "server")
        self.site = SiteHome(folder / "berlin")
        self.federation = federation
        description = folder / "federation.toml"
        description.write_text(f'name = "{federation}"\n[server]\naddress = "127.0.0.1:1"\nnames = ["localhost"]\n')
        now = time.time()
        provision.found(self.authority, description, passphrase=None, now=now)
        enrolment.make_keys(self.site, None)
        request = enrolment.request(self.site, federation=federation, site="berlin", passphrase=None)
        with provision.at_work(self.authority, None) as office:
            grant = enrolment.check_grant(self.site, office.approve(request, now=now), None, now=now)
            enrolment.install(self.site, grant, None)
            office.equip_server(self.server, passphrase=None, now=now)

    def dialer(self, address: str, **more: Any) -> GrpcDialer:
        return GrpcDialer(
            address, lambda: channel_credentials(self.site), options=channel_options(self.federation), **more
        )

    def settle(self, address: str, plan: Plan, **changes: Any) -> None:
        """Give the site records, a budget for the plan, and the server's address."""
        table = self.site.path / "records.csv"
        generator = np.random.default_rng(1)
        rows = [f"{v:.3f},{w:.3f},{'abc'[int(y)]}" for v, w, y in generator.uniform(0, 1, (40, 3)) * (1, 1, 3)]
        table.write_text("\n".join(["v,w,y", *rows, ""]))
        balance, privacy = plan.balance, plan.privacy
        budget = {"unit": balance.unit, "trust": balance.trust, "epsilon": privacy.epsilon, "delta": privacy.delta}
        self.change(
            server={"address": address},
            data=[{"name": plan.data.name, "format": "csv", "path": "records.csv"}],
            budget=[budget],
            approval={"plans": "policy"},
            schedule={"on_battery": True, "metered": True},
            **changes,
        )

    def change(self, **changes: Any) -> None:
        """Change `site.toml`: tables key by key, anything else whole."""
        found = tomllib.loads(self.site.settings.read_text())
        for key, value in changes.items():
            found[key] = {**found.get(key, {}), **value} if isinstance(value, Mapping) else value
        self.site.settings.write_text(tomli_w.dumps(found))
