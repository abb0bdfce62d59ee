"""Who was revoked stays out, whatever happens to the files."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from security.authority import certify_revocations
from security.errors import UsageError
from security.homes import ServerHome
from security.revocation import Revocations, revoke_here, revoked_here
from tests.security.small_federation import Homes, Signer

NOW = time.time()


def crl(signer: Signer, *serials: int, number: int = 2) -> bytes:
    return certify_revocations(
        signer.pem, signer.key, revoked=[(serial, NOW) for serial in serials], number=number, now=NOW
    )


@pytest.fixture
def server(homes: Homes, signer: Signer) -> ServerHome:
    """A server's home under an authority whose key the test has."""
    homes.server.authority_certificate.write_bytes(signer.pem)
    homes.server.revoked.write_bytes(crl(signer, number=1))
    return homes.server


def test_a_site_is_revoked_by_the_serial_number_of_its_certificate(
    server: ServerHome, homes: Homes, signer: Signer
) -> None:
    north, south = homes.site.peer(), homes.other_site.peer()
    revocations = Revocations.of_home(server)
    assert not revocations.is_revoked(north)
    server.revoked.write_bytes(crl(signer, north.serial))
    assert revocations.is_revoked(north)
    assert not revocations.is_revoked(south)
    assert revocations.problem is None


def test_the_operator_keeps_a_site_out_by_name_at_once(server: ServerHome, homes: Homes) -> None:
    revocations = Revocations.of_home(server)
    revoke_here(server, "north")
    revoke_here(server, "north")
    revoke_here(server, "elsewhere")
    assert revocations.is_revoked(homes.site.peer())
    assert not revocations.is_revoked(homes.other_site.peer())
    assert list(revoked_here(server)) == ["elsewhere", "north"]


def test_two_commands_at_once_lose_nobody(server: ServerHome) -> None:
    sites = [f"site-{number}" for number in range(24)]
    with ThreadPoolExecutor(8) as workers:
        list(workers.map(lambda site: revoke_here(server, site), sites))
    assert set(revoked_here(server)) == set(sites)


def test_the_server_itself_is_not_meant_by_a_site_s_name(server: ServerHome, homes: Homes) -> None:
    revoke_here(server, "server")
    assert not Revocations.of_home(server).is_revoked(homes.server.peer())


def test_another_authority_s_list_is_refused(server: ServerHome, other_signer: Signer) -> None:
    server.revoked.write_bytes(crl(other_signer, 7))
    with pytest.raises(UsageError, match="not signed by this federation's authority"):
        Revocations.of_home(server)


@pytest.mark.parametrize("content", [b"", b"no list", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_a_damaged_list_is_refused(server: ServerHome, content: bytes) -> None:
    server.revoked.write_bytes(content)
    with pytest.raises(UsageError, match=r"revoked\.pem: is not a list of revoked certificates"):
        Revocations.of_home(server)


def test_a_missing_list_is_refused(server: ServerHome) -> None:
    server.revoked.unlink()
    with pytest.raises(UsageError, match=r"revoked\.pem: can't be read"):
        Revocations.of_home(server)


def test_no_newer_file_takes_a_revocation_back_by_mistake(
    server: ServerHome, homes: Homes, signer: Signer, other_signer: Signer
) -> None:
    north = homes.site.peer()
    server.revoked.write_bytes(crl(signer, north.serial, number=5))
    revocations = Revocations.of_home(server)
    for content, words in (
        (crl(signer, number=4), "older than the list in force"),
        (crl(signer, 7, number=5), "has the number of the list in force"),
        (crl(other_signer, number=9), "not signed by this federation's authority"),
        (b"damaged", "is not a list"),
        (None, "can't be read"),
    ):
        if content is None:
            server.revoked.unlink()
        else:
            server.revoked.write_bytes(content)
        assert revocations.is_revoked(north), words
        assert words in (revocations.problem or "")
    server.revoked.write_bytes(crl(signer, number=6))  # the authority's own word, newer
    assert not revocations.is_revoked(north)
    assert revocations.problem is None


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind": "veil revocations 1", "sites": {"../x": "now"}}'])
def test_a_damaged_list_of_the_operator_s_stays_in_force(server: ServerHome, homes: Homes, content: bytes) -> None:
    revoke_here(server, "north")
    revocations = Revocations.of_home(server)
    server.revoked_here.write_bytes(content)
    assert revocations.is_revoked(homes.site.peer())
    assert "revoked-here.json" in (revocations.problem or "")
    with pytest.raises(UsageError, match="revoked-here"):
        revoke_here(server, "south")
    with pytest.raises(UsageError, match="revoked-here"):
        Revocations.of_home(server)


def test_a_list_of_the_operator_s_that_is_gone_stays_in_force(server: ServerHome, homes: Homes) -> None:
    revoke_here(server, "north")
    revocations = Revocations.of_home(server)
    server.revoked_here.unlink()
    assert revocations.is_revoked(homes.site.peer())
    assert "is missing" in (revocations.problem or "")


def test_both_lists_are_reloaded_each_by_itself(server: ServerHome, homes: Homes, signer: Signer) -> None:
    revocations = Revocations.of_home(server)
    server.revoked.write_bytes(b"damaged")
    revoke_here(server, "north")
    assert revocations.is_revoked(homes.site.peer())
    server.revoked.write_bytes(crl(signer, homes.other_site.peer().serial))
    assert revocations.is_revoked(homes.other_site.peer())


def test_what_is_no_name_can_t_be_revoked(server: ServerHome) -> None:
    with pytest.raises(UsageError, match="can't be the name of a site"):
        revoke_here(server, "../north")
