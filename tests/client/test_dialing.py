"""Calling the server: how long between calls, through which proxy, with which keys, and who is not believed."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from client.dialing import Backoff, CutError, GrpcDialer, Wire, forget_proxies
from security.credentials import server_credentials
from security.frames import LARGEST_FRAME, LARGEST_PLAN, Beat, Hello, Offer, decode, encode
from tests.client.link_home import Pilot
from tests.client.link_server import LinkServer

HELLO = Hello(software="1", federation="pilot", site="berlin")
Found = TypeVar("Found")


# --- how long between calls -----------------------------------------------------------------------------------------


def test_delays_double_from_a_second_to_five_minutes_and_begin_anew_after_a_good_connection() -> None:
    most: list[float] = []

    def draw(highest: float) -> float:
        most.append(highest)
        return highest / 2

    backoff = Backoff(draw=draw)
    delays = [backoff.delay() for _ in range(12)]
    assert most == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert delays == [highest / 2 for highest in most]
    backoff.reset()
    backoff.delay()
    backoff.slow_down()
    backoff.delay()
    assert most[12:] == [1, 300]


def test_delays_of_many_sites_are_spread_over_the_whole_time_and_days_of_them_overflow_nothing() -> None:
    backoff = Backoff()
    for _ in range(5000):
        backoff.delay()
    delays = [backoff.delay() for _ in range(400)]
    assert 0 <= min(delays) < 30
    assert 270 < max(delays) <= 300


# --- a stream -------------------------------------------------------------------------------------------------------


def dialer(server: LinkServer, **more: Any) -> GrpcDialer:
    return GrpcDialer(server.address, grpc.local_channel_credentials, **more)


def talk(dial: GrpcDialer, what: Callable[[Wire], Awaitable[Found]]) -> Found:
    """Open a stream, do something with it, and close it."""

    async def talking() -> Found:
        wire = await dial()
        try:
            return await asyncio.wait_for(what(wire), 20)
        finally:
            await wire.close()

    return asyncio.run(talking())


@pytest.fixture
def server() -> Iterator[LinkServer]:
    with LinkServer() as found:
        yield found


def test_frames_go_both_ways_up_to_the_largest(server: LinkServer) -> None:
    largest = encode(Offer(run="ab", plan="x" * LARGEST_PLAN, digest="0" * 64))
    assert LARGEST_PLAN < len(largest) <= LARGEST_FRAME

    async def both(wire: Wire) -> None:
        await wire.write(encode(HELLO))
        stream = await asyncio.to_thread(server.stream)
        assert await asyncio.to_thread(stream.hear, Hello) == HELLO
        stream.say_bytes(largest)
        stream.end()
        assert await wire.read() == largest
        assert await wire.read() is None
        assert await wire.read() is None

    talk(dialer(server), both)


async def write_for_ever(wire: Wire) -> None:
    while True:
        await wire.write(encode(HELLO))
        await asyncio.sleep(0.01)


def test_what_the_server_said_before_it_hung_up_is_heard_however_late_it_is_asked_for(server: LinkServer) -> None:
    async def late(wire: Wire) -> None:
        stream = await asyncio.to_thread(server.stream)
        stream.say(Beat())
        stream.end()
        with pytest.raises(CutError):
            await write_for_ever(wire)
        found = await wire.read()
        assert found is not None
        assert decode(found) == Beat()

    for _ in range(5):
        talk(dialer(server), late)


def test_a_line_that_breaks_is_no_good_end_and_says_nothing_of_the_other_side(server: LinkServer) -> None:
    async def broken(wire: Wire) -> None:
        await wire.write(encode(HELLO))
        stream = await asyncio.to_thread(server.stream)
        stream.cut()
        with pytest.raises(CutError) as cut:
            await wire.read()
        assert str(cut.value) in ("cancelled", "unavailable", "internal", "unknown")

    talk(dialer(server), broken)


def test_nobody_there_is_a_cut_soon(server: LinkServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    begun = time.monotonic()

    async def nobody(wire: Wire) -> None:
        with pytest.raises(CutError, match="unavailable"):
            await wire.read()

    talk(GrpcDialer(f"127.0.0.1:{port}", grpc.local_channel_credentials), nobody)
    assert time.monotonic() - begun < 10


def test_hanging_up_is_heard_by_the_server(server: LinkServer) -> None:
    async def hang_up(wire: Wire) -> None:
        await wire.write(encode(HELLO))
        stream = await asyncio.to_thread(server.stream)
        await wire.end()
        await asyncio.to_thread(stream.wait_until_over)
        assert await wire.read() is None

    talk(dialer(server), hang_up)


# --- proxies --------------------------------------------------------------------------------------------------------


class Proxy:
    """A proxy that opens one tunnel after another; `asked` are the places that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._socket.accept()
            except OSError:
                return
            request = near.recv(4096).decode().split()
            assert request[0] == "CONNECT"
            self.asked.append(request[1])
            host, _, port = request[1].rpartition(":")
            far = socket.create_connection((host, int(port)))
            near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            return


async def greet(wire: Wire) -> None:
    await wire.write(encode(HELLO))


def test_a_proxy_is_used_if_the_site_names_one_and_not_if_the_environment_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pilot = Pilot(tmp_path)
    named, other = Proxy(), Proxy()
    monkeypatch.setenv("https_proxy", other.address)
    monkeypatch.setenv("http_proxy", other.address)
    monkeypatch.setenv("grpc_proxy", other.address)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")
    forget_proxies()
    with LinkServer(server_credentials(pilot.server)) as server:
        for proxy in ("", named.address):

            async def call(wire: Wire) -> None:
                await wire.write(encode(HELLO))
                stream = await asyncio.to_thread(server.stream)
                assert await asyncio.to_thread(stream.hear, Hello) == HELLO

            talk(pilot.dialer(server.address, proxy=proxy), call)
        assert named.asked == [server.address]
        assert other.asked == []
    named.close()
    other.close()


# --- keys -----------------------------------------------------------------------------------------------------------


def test_mutual_tls_lets_the_site_in_and_nobody_else(tmp_path: Path) -> None:
    pilot, strangers = Pilot(tmp_path / "one"), Pilot(tmp_path / "other")
    with LinkServer(server_credentials(pilot.server)) as server:

        async def heard(wire: Wire) -> bool:
            try:
                await wire.write(encode(HELLO))
                stream = await asyncio.to_thread(server.stream, timeout=5)
                await asyncio.to_thread(stream.hear, Hello)
            except (CutError, TimeoutError):
                return False
            return True

        async def cut(wire: Wire) -> bool:
            try:
                return await wire.read() is not None
            except CutError:
                return False

        assert talk(pilot.dialer(server.address), heard)
        assert not talk(strangers.dialer(server.address), cut)  # of another authority
        assert not talk(dialer(server), cut)  # without TLS
    with LinkServer(server_credentials(strangers.server)) as server:
        assert not talk(pilot.dialer(server.address), cut)  # the site doesn't believe another authority's server


def test_keys_are_read_for_every_call_so_that_renewed_ones_are_used(server: LinkServer) -> None:
    asked: list[int] = []

    def credentials() -> grpc.ChannelCredentials:
        asked.append(1)
        return grpc.local_channel_credentials()

    dial = GrpcDialer(server.address, credentials)
    for _ in range(3):
        talk(dial, greet)
    assert len(asked) == 3
