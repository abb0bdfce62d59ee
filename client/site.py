"""What belongs to the owner, as the app needs it: whose books, which policy, which records.

At a deployed site everything is the owner's own: settings, ledger, identity, data, and the key of its splits. Virtual
owners of a simulation are in `client.simulated_site`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from client.approvals import Approvals, PendingPlans, Stamp, stamp_of
from client.books import Books
from client.membership import check_membership
from client.policy import RefusedError, SitePolicy
from client.site_books import open_books, read_split_key
from client.site_settings import SiteSettings, read_settings
from client.sum_attempts import Attempts, SumAttempts
from security.enrolment import approved_roster
from security.errors import UsageError
from security.frames import ACCEPTED, PENDING
from security.homes import SiteHome
from security.identity import Identity
from security.private_files import make_folder, replace_file
from shared_models import own
from shared_models.faults import Fault
from shared_models.plan import Plan
from shared_models.plan_file import parse_plan

if TYPE_CHECKING:  # they bring torch with them, which a client that waits for its first plan doesn't need
    from flwr.app import Context

    from client.datasets.records import Records
    from client.workplace import Workplace
    from shared_models.parameters import Parameters

_log = logging.getLogger("veil.client")


class Site(Protocol):
    """What belongs to one owner of data."""

    @property
    def deployed(self) -> bool:
        """Whether the data is real: then noise never follows from a seed."""

    @property
    def client(self) -> str:
        """The stable id. In a simulation it may be in the data: ask after the round is charged."""

    @property
    def booked_as(self) -> str:
        """The id that the ledger's tasks name; known without a look at the data."""

    def federation(self, plan: Plan) -> str:
        """Whose server asks."""

    def policy(self, plan: Plan) -> SitePolicy:
        """What the owner allows."""

    def refusal(self, plan: Plan) -> Fault | None:
        """What the site has against a plan beside its policy."""

    def books(self) -> Books:
        """The ledger, and who signs for it."""

    def peers(self, place: Workplace) -> Mapping[str, str]:
        """Public key of the identity of each client that may be in a secure sum, by name: never the server's word.

        Raises:
            UsageError: the roster can't be relied on.
        """

    def attempts(self) -> Attempts:
        """The secure sums that the client has a part in."""

    def training_records(self, place: Workplace) -> Records:
        """What is trained on."""

    def held_out(self, place: Workplace) -> Records:
        """What is kept for evaluation, in a plan whose clients hold something out."""

    def keep_personal(self, place: Workplace, run: str, model: Parameters, judged: Callable[[], float | None]) -> None:
        """Keep the client's own model for its owner, and tell that one how good it is; nobody else hears of it."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a site says to an offer.

    Attributes:
        fault: why it won't take part; None if it will, or may.
        pending: the owner has yet to approve.
        reason: for the owner's own log, one line; the server gets `code` alone.
        plan: what was offered, where it could be read.
    """

    fault: Fault | None = None
    pending: bool = False
    reason: str = ""
    plan: Plan | None = None

    @property
    def code(self) -> int:
        """As an `Answer` carries it."""
        return int(self.fault) if self.fault is not None else PENDING if self.pending else ACCEPTED


class DeployedSite:
    """A data owner's site. Made by `open`, closed by `close`; one for a home and process.

    Args:
        home: where its files lie.
        settings: as `home.settings` says.
        federation: name in its certificate.
        books: its ledger and its identity.
        split_key: its secret for rules 6 and 10.
        clock: for tests.
    """

    deployed = True

    def __init__(
        self,
        *,
        home: SiteHome,
        settings: SiteSettings,
        federation: str,
        books: Books,
        split_key: bytes,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.home = home
        self.name = settings.site
        self.approvals = Approvals(home.approvals, clock=clock)
        self.pending = PendingPlans(home.pending)
        self._settings = settings
        own.bind(settings.models)
        self._stamp = stamp_of(home.settings)
        self._federation = federation
        self._books = books
        self._split_key = split_key
        self._attempts = SumAttempts()
        self._loaded: tuple[object, tuple[Records, Records]] | None = None
        self._lock = threading.RLock()

    @classmethod
    def open(cls, home: SiteHome, settings: SiteSettings | None = None, passphrase: str | None = None) -> Self:
        """Open a site's home: its keys, certificate and roster must belong together, its ledger must be there.

        Args:
            home: where its files lie.
            settings: as `home.settings` says; read if left out.
            passphrase: of the identity.

        Raises:
            UsageError: something is missing or doesn't belong here; one line that says what to do.
            LedgerError: the ledger can't be relied on, or is gone.
        """
        home.check_here()
        settings = settings or read_settings(home.settings)
        identity = Identity.load(home.identity_key, passphrase)
        peer = check_membership(home, site=settings.site, identity=identity.public_hex)
        key = read_split_key(home)
        found = open_books(home, identity)
        return cls(home=home, settings=settings, federation=peer.federation, books=found, split_key=key)

    def close(self) -> None:
        """Close the ledger, and be no longer found by `site_of`."""
        _deployed.pop(self.name, None)
        self._attempts.clear()
        self._books.ledger.close()

    @property
    def settings(self) -> SiteSettings:
        """As the file says now: it is read again when it has changed.

        Raises:
            UsageError: it can't be read, or names another site.
        """
        with self._lock:
            stamp = stamp_of(self.home.settings)
            if stamp is None:
                raise UsageError(f"{self.home.settings}: is gone; without it nothing is allowed: put it back")
            if stamp != self._stamp:
                found = read_settings(self.home.settings)
                if found.site != self.name:
                    raise UsageError(f"{self.home.settings}: site = '{found.site}', but this is '{self.name}'; mend it")
                self._settings, self._stamp = found, stamp
                own.bind(found.models)
            return self._settings

    def consider(self, plan_text: str, digest: str) -> Verdict:
        """What to say to an offered plan. The first time a plan is seen this takes a second or so, then nothing.

        No value of the data is read. A plan that waits for the owner is kept for `veil client approve`.

        Args:
            plan_text: resolved, as TOML.
            digest: as the server tells it.
        """
        from client.offers import OfferError, check_site, read_offer

        plan = None
        try:
            plan = read_offer(plan_text, digest)
            settings = self.settings
            check_site(plan, settings, federation=self._federation)
            if self._is_approved(plan, settings):
                self.pending.remove(digest)
                return Verdict(plan=plan)
            self.pending.put(plan)
        except OfferError as error:
            return Verdict(fault=error.fault, reason=str(error), plan=plan)
        except UsageError as error:  # settings, approvals or the folder of those that wait
            return Verdict(fault=Fault.POLICY_APPROVAL, reason=str(error), plan=plan)
        return Verdict(pending=True, reason=f"waits for `veil client approve {self.home.path}`", plan=plan)

    def is_approved(self, digest: str) -> bool:
        """Whether the owner has approved a plan, or need not; quick enough to be asked every few seconds."""
        try:
            return self.settings.approval.plans == "policy" or self.approvals.holds(digest)
        except UsageError:
            return False

    def allows(self, plan: Plan, fields: Collection[str]) -> bool:
        """Whether what was made under a plan that was accepted once may leave as settings and approvals are now; quick.

        Args:
            plan: that it was made under.
            fields: that it holds, as `record.field`; of arrays the record alone.
        """
        from client.egress import planned_fields
        from client.offers import OfferError, check_data

        try:
            settings = self.settings
            check_data(plan, settings)
            policy = settings.policy
            return (
                policy.refusal(plan, federation=self._federation) is None
                and planned_fields(plan, policy).keys() >= set(fields)
                and self._is_approved(plan, settings)
            )
        except (OfferError, UsageError):
            return False

    # --- as the app needs it

    @property
    def client(self) -> str:
        return self.name

    @property
    def booked_as(self) -> str:
        return self.name

    def federation(self, plan: Plan) -> str:
        return self._federation

    def policy(self, plan: Plan) -> SitePolicy:
        return self._readable().policy

    def refusal(self, plan: Plan) -> Fault | None:
        # Looked at anew for every task: an answer to an offer is a courtesy, this is the rule.
        from client.offers import OfferError, check_beyond_policy

        settings = self._readable()
        try:
            check_beyond_policy(plan, settings)
            approved = self._is_approved(plan, settings)
        except OfferError as error:
            _log.warning("plan %s is refused: %s", plan.digest()[:16], error)
            return error.fault
        except UsageError as error:
            _log.warning("%s", error)
            approved = False
        return None if approved else Fault.POLICY_APPROVAL

    def books(self) -> Books:
        return self._books

    def peers(self, place: Workplace) -> Mapping[str, str]:
        return approved_roster(self.home).sites

    def attempts(self) -> Attempts:
        return self._attempts

    def training_records(self, place: Workplace) -> Records:
        return self._records(place.plan)[0]

    def held_out(self, place: Workplace) -> Records:
        return self._records(place.plan)[1]

    def keep_personal(self, place: Workplace, run: str, model: Parameters, judged: Callable[[], float | None]) -> None:
        from safetensors.numpy import save

        del run  # a server may run a plan as often as it likes: the last model of each is kept
        name = f"{place.plan.name}-{place.plan.digest()[:12]}"
        make_folder(self.home.personal, private=True)
        replace_file(self.home.personal / f"{name}.safetensors", save(dict(model)), mode=0o600)
        facts = {"file": f"{self.home.personal.name}/{name}.safetensors", "accuracy": judged()}
        _log.info("personal model kept", extra={"facts": facts})

    def device_for(self, plan_text: str) -> str:
        """Where to compute a plan that leaves it open.

        Raises:
            RefusedError: the plan asks for more than the owner gives; nothing is built of it.
            UsageError: it is no plan.
        """
        from client.offers import OfferError, check_resources

        resources = self._readable().resources
        try:
            check_resources(parse_plan(plan_text, where="plan"), resources)
        except OfferError as error:
            _log.warning("a plan is refused: %s", error)
            raise RefusedError(error.fault) from None
        return resources.device

    # --- within

    def _readable(self) -> SiteSettings:
        """The settings; while they can't be read, nothing is approved."""
        try:
            return self.settings
        except UsageError as error:
            _log.warning("every plan is refused: %s", error)
            raise RefusedError(Fault.POLICY_APPROVAL) from None

    def _is_approved(self, plan: Plan, settings: SiteSettings) -> bool:
        return settings.approval.plans == "policy" or self.approvals.holds(plan.digest())

    def _records(self, plan: Plan) -> tuple[Records, Records]:
        """What is trained on, and what is kept for evaluation; read again when the file has changed."""
        from client.datasets.features import as_seen
        from client.datasets.registry import load_file
        from client.datasets.split import split

        file = self._readable().data_for(plan.data.name)
        if file is None:
            raise SiteDataError(self, plan)
        path = Path(file.path).expanduser()
        with self._lock:
            try:
                key = (
                    plan.data.model_dump_json(),
                    plan.features,
                    plan.is_private,
                    plan.holds_out,
                    file,
                    _stamp_of_all(path),
                )
                if self._loaded is None or self._loaded[0] != key:
                    self._loaded = None  # never two of them in memory
                    found = load_file(
                        plan.data,
                        kind=file.format,
                        path=path,
                        split_key=self._split_key,
                        leave_out=plan.is_private,
                    )
                    parts = (found, found.take([]))
                    if plan.holds_out:
                        parts = split(found, key=self._split_key, test_fraction=plan.data.test_fraction)
                    # In memory alone: features say as much as the records themselves.
                    train, held_out = (as_seen(plan, part, cached=False) for part in parts)
                    self._loaded = (key, (train, held_out))
            except UsageError:
                raise SiteDataError(self, plan) from None
            return self._loaded[1]


def _stamp_of_all(path: Path) -> tuple[Stamp, str]:
    """As `stamp_of`, of a folder with all that is in it: an image that was removed must not be trained on again."""
    found = sha256()
    for inner in sorted(path.rglob("*")) if path.is_dir() else ():
        found.update(repr((os.fspath(inner), stamp_of(inner))).encode("utf-8", "surrogateescape"))
    return stamp_of(path), found.hexdigest()


class SiteDataError(UsageError):
    """The site's data can't be used. Why, is told by the doctor: the text may name files, and this one is logged."""

    def __init__(self, site: DeployedSite, plan: Plan) -> None:
        super().__init__(
            f"the data for '{plan.data.name}' can't be used; run `veil doctor --site {site.home.path}` to see why"
        )


# --- which site a message is for

_deployed: dict[str, DeployedSite] = {}


def register_site(site: DeployedSite) -> None:
    """Have this process' app work for a site, under its name."""
    _deployed[site.name] = site


def registered_site(context: Context) -> DeployedSite | None:
    """The site that the app was told to work for; None in a simulation.

    Raises:
        ValueError: no such site was registered in this process.
    """
    name = context.run_config.get("site")
    if name is None:
        return None
    if name not in _deployed:
        raise ValueError("the app was told to work for a site that isn't here")
    return _deployed[str(name)]


def site_of(place: Workplace, context: Context) -> Site:
    """Whose data a message is about.

    Raises:
        ValueError: as `registered_site`.
    """
    from client.simulated_site import SimulatedSite

    return registered_site(context) or SimulatedSite(place, context)
