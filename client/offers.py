"""A plan that a server offers, looked at before anything of it runs.

The text is a stranger's. It is read, held against its digest and against what the site allows and has, and only then
is its network built and its claim computed again (`resolve`): a plan that promises more than its noise gives is
refused. Whether there is data is asked of the file's name; no value is read.
"""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Final

import psutil

from client.datasets.registry import misfit
from client.site_settings import ResourceSettings, SiteSettings
from client.trainer import choose_device
from client.workplace import wanted_device
from security.errors import UsageError
from security.frames import LARGEST_PLAN
from shared_models.cards import card_for
from shared_models.faults import Fault
from shared_models.features.apply import model_shape
from shared_models.features.encoders import ENCODERS
from shared_models.parameters import size_of
from shared_models.plan import Plan
from shared_models.plan_asynchronous import is_asynchronous
from shared_models.plan_augment import copies_of
from shared_models.plan_file import parse_plan
from shared_models.registry import dry
from shared_models.resolve import resolve

_MOST_ROUNDS: Final = 100_000  # every planned round is counted when the ledger admits a plan
# In float32: weights, where the round began, gradient and its sum, an optimiser's two moments; and twice for the check.
_BYTES_A_PARAMETER: Final = 48
_BYTES_FROZEN: Final = 12  # the weight, and in float64 for the check
_BYTES_A_VALUE: Final = 128  # of an example: the check's batch of four, in float64, and what is made of it


class OfferError(Exception):
    """A plan that this site can't take, whatever its policy says. The text is for the owner."""

    def __init__(self, fault: Fault, reason: str) -> None:
        super().__init__(_printable(reason))  # it may quote the plan, which is a stranger's
        self.fault = fault


def read_offer(text: str, digest: str) -> Plan:
    """The plan that was offered.

    Raises:
        OfferError: it is none, or not the one whose digest was told.
    """
    if len(text.encode("utf-8", "surrogatepass")) > LARGEST_PLAN:
        raise OfferError(Fault.PLAN_MISMATCH, "the plan is larger than any plan")
    try:
        plan = parse_plan(text, where="the offered plan")
    except UsageError as error:
        raise OfferError(Fault.PLAN_MISMATCH, _line(error)) from None
    if plan.digest() != digest:
        raise OfferError(Fault.PLAN_MISMATCH, "the offered plan is not the one whose digest was told")
    return plan


def check_site(plan: Plan, settings: SiteSettings, *, federation: str) -> None:
    """Check that the site may and can work on the plan; whether its owner has approved it is another question.

    Args:
        plan: that was offered.
        settings: of the site.
        federation: whose server offers it.

    Raises:
        OfferError: it may not, or can't.
    """
    fault = settings.policy.refusal(plan, federation=federation)
    if fault is not None:
        raise OfferError(fault, f"the site's policy: {fault.reason}")
    check_beyond_policy(plan, settings)


def check_beyond_policy(plan: Plan, settings: SiteSettings) -> None:
    """Check what no policy decides: secret noise, data, room, and that the plan keeps its promise.

    Raises:
        OfferError: one of them is missing.
    """
    if plan.is_private and plan.privacy.noise == "reproducible":
        raise OfferError(Fault.POLICY_NOISE, "privacy.noise = 'reproducible': for simulations alone, never here")
    if plan.privacy.trust == "distributed" and not plan.secure.masks:
        raise OfferError(Fault.POLICY_SECURE_SUM, "secure_sum.masks = false: for simulations alone, never here")
    if is_asynchronous(plan):
        raise OfferError(Fault.PLAN_MISMATCH, "federation.asynchronous: for simulations alone, never here")
    check_data(plan, settings)
    check_resources(plan, settings.resources)
    check_promise(plan)


def check_promise(plan: Plan) -> None:
    """Check that the plan keeps its own promise: resolved again, it is the same. The first time takes a second or so.

    Raises:
        OfferError: it isn't, or this version can't run it.
    """
    try:
        kept = _resolved_digest(plan) == plan.digest()
    except UsageError as error:
        raise OfferError(Fault.PLAN_MISMATCH, _line(error)) from None
    if not kept:
        raise OfferError(Fault.PLAN_MISMATCH, "the offered plan leaves open what a resolved plan says")


def check_resources(plan: Plan, resources: ResourceSettings) -> None:
    """Check that the machine, as far as the owner gives it, is enough for the plan.

    Raises:
        OfferError: it asks for too many threads, another device, or too much memory.
    """
    if plan.training.threads > resources.threads:
        raise _too_much(
            f"training.threads = {plan.training.threads}, the site gives {resources.threads} (resources.threads)"
        )
    if plan.federation.rounds > _MOST_ROUNDS:
        raise _too_much(f"federation.rounds = {plan.federation.rounds}, more than {_MOST_ROUNDS}")
    wanted = wanted_device(plan, resources.device)
    if resources.device not in ("auto", wanted):
        raise _too_much(f"training.device = '{wanted}', the site gives {resources.device} (resources.device)")
    try:
        choose_device(wanted, plan.training.precision)
        needed = least_memory(plan)
    except UsageError as error:
        raise _too_much(_line(error)) from None
    given = resources.memory_mb * 2**20 or psutil.virtual_memory().total
    if needed > given:
        raise _too_much(
            f"its network needs {needed / 2**20:.0f} MB at least, there are {given / 2**20:.0f} (resources.memory_mb)"
        )


def check_data(plan: Plan, settings: SiteSettings) -> None:
    """Check that the site has a file for the plan's data; its content is not looked at.

    Raises:
        OfferError: it has none, or of a kind that can't hold such data; or the plan takes another column for people
            than the owner, so that its epsilon would be about something else (rule 6).
    """
    file = settings.data_for(plan.data.name)
    if file is None:
        raise OfferError(Fault.SITE_DATA, f"no [[data]] in the settings has the name '{plan.data.name}'")
    try:
        refusal = misfit(plan.data, file.format)
    except UsageError as error:
        raise OfferError(Fault.SITE_DATA, _line(error)) from None
    if refusal is not None:
        raise OfferError(Fault.SITE_DATA, refusal)
    people = plan.data.person_column
    if people is not None and people != file.person_column:
        raise OfferError(
            Fault.SITE_DATA,
            f"data.person_column = '{people}' is not what names people here: in [[data]], person_column = "
            f"'{file.person_column}'",
        )
    if not Path(file.path).expanduser().exists():
        raise OfferError(Fault.SITE_DATA, f"{file.path}: the data for '{plan.data.name}' is not there")


def least_memory(plan: Plan) -> int:
    """Bytes that the plan's network takes at least, without what a batch takes on its way through.

    Raises:
        UsageError: there is no such network.
    """
    values = math.prod(card_for(plan.data).input_shape)
    derived = plan.features is not None and plan.features.name not in ENCODERS
    matrices = 4 * math.prod(model_shape(plan)) ** 2 if derived else 0
    size = size_of(dry(plan))
    weights = _BYTES_A_PARAMETER * size.trained + _BYTES_FROZEN * size.frozen
    return weights + _BYTES_A_VALUE * values * copies_of(plan) + matrices


@lru_cache(maxsize=8)
def _resolved(text: str) -> str:
    return resolve(Plan.model_validate_json(text)).digest()


def _resolved_digest(plan: Plan) -> str:
    return _resolved(plan.model_dump_json())


def _too_much(reason: str) -> OfferError:
    return OfferError(Fault.POLICY_RESOURCES, reason)


def _line(error: Exception) -> str:
    """The first line of an error over a stranger's plan, so that nothing in it can pass for a line of our own."""
    return (str(error).splitlines() or [""])[0]


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:300]
