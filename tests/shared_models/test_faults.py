"""Rule 5: a failure is one fixed number."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_models.faults import Fault, fault_of


def test_rule_5_the_numbers_are_fixed() -> None:
    # They are on the wire: a number may be added, none may change its meaning.
    assert {fault.name: int(fault) for fault in Fault} == {
        "CLIENT_FAILED": 1001,
        "PLAN_MISMATCH": 1002,
        "MODEL_MISMATCH": 1003,
        "BUDGET_EXHAUSTED": 1004,
        "MALFORMED_REPLY": 1005,
        "NON_FINITE": 1006,
        "UNREACHABLE": 1007,
        "TIMED_OUT": 1008,
        "LEDGER_CLOSED": 1009,
        "REPLY_GONE": 1010,
        "POLICY_FEDERATION": 1011,
        "POLICY_PLAN": 1012,
        "POLICY_MODEL": 1013,
        "POLICY_UNIT": 1014,
        "POLICY_ENTRUST": 1015,
        "POLICY_NOISE": 1016,
        "POLICY_CLIPPING": 1017,
        "POLICY_FIELD": 1018,
        "POLICY_RATE": 1019,
        "POLICY_APPROVAL": 1020,
        "SITE_DATA": 1021,
        "POLICY_RESOURCES": 1022,
        "POLICY_SECURE_SUM": 1023,
        "SECURE_SUM_REFUSED": 1024,
        "SECURE_SUM_LOST": 1025,
        "SECURE_SUM_BROKEN": 1026,
        "SECURE_SUM_ABORTED": 1027,
        "ROUND_REPEATED": 1028,
    }


def test_rule_5_what_depends_on_plan_settings_ledger_and_messages_alone_is_a_refusal_and_nothing_else_is() -> None:
    after = {"CLIENT_FAILED", "MALFORMED_REPLY", "NON_FINITE", "UNREACHABLE", "TIMED_OUT"}
    after |= {"SECURE_SUM_BROKEN", "SECURE_SUM_ABORTED"}  # which no client says: the server finds it
    assert {fault.name for fault in Fault if not fault.is_refusal} == after


@pytest.mark.parametrize("fault", Fault)
def test_a_fault_is_known_by_its_code_and_printed_by_its_name(fault: Fault) -> None:
    assert fault_of(int(fault)) is fault
    assert fault.reason == fault.name.lower().replace("_", "-")


@settings(deadline=None)
@given(st.integers())
def test_a_code_of_somebody_elses_means_that_the_client_failed(code: int) -> None:
    known = {int(fault) for fault in Fault}
    assert fault_of(code) is (Fault(code) if code in known else Fault.CLIENT_FAILED)
