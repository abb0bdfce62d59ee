"""Two network namespaces on one machine, joined by a wire that loses packets.

Real TCP runs over it: a thread between two TUN devices drops packets below the kernel's stack, which needs no module
of the kernel's, as `tc netem` does. Needs root and `ip`.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Final

_SET_INTERFACE: Final = 0x400454CA  # TUNSETIFF of linux/if_tun.h
_TUN_WITHOUT_HEADER: Final = 0x0001 | 0x1000
_LARGEST_PACKET: Final = 1 << 16


@dataclass
class LossyNetwork:
    """The two ends.

    Attributes:
        server, site: what to put before a command to run it at that end.
        address: of the server's end.
        passed, lost: packets so far.
    """

    server: list[str]
    site: list[str]
    address: str
    passed: int = 0
    lost: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)


def unavailable() -> str | None:
    """Why this machine can't have such a network, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command `ip` is not installed"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "there is no /dev/net/tun"
    tried = subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True)
    return "network namespaces can't be made here" if tried.returncode else None


@contextmanager
def lossy_network(rate: float, *, seed: int) -> Iterator[LossyNetwork]:
    """A wire that loses each packet with chance `rate`, in either direction, while the context lasts."""
    tag = f"{os.getpid() % 100_000}"
    near, far = f"veil-a{tag}", f"veil-b{tag}"
    with ExitStack() as stack:
        for name in (near, far):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        network = LossyNetwork(
            server=["ip", "netns", "exec", near],
            site=["ip", "netns", "exec", far],
            address="10.213.7.1",
        )
        wire = [_tun(stack, f"vt{end}{tag}", name, address) for end, name, address in _ends(near, far)]
        forward = threading.Thread(target=_forward, args=(network, wire, rate, random.Random(seed)), daemon=True)
        forward.start()
        stack.callback(forward.join, 10)
        stack.callback(network._stop.set)
        yield network


def _ends(near: str, far: str) -> tuple[tuple[str, str, str], ...]:
    return ("a", near, "10.213.7.1"), ("b", far, "10.213.7.2")


def _tun(stack: ExitStack, device: str, namespace: str, address: str) -> int:
    """One end of the wire: a TUN device in a namespace; its file stays here."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    stack.callback(os.close, end)
    fcntl.ioctl(end, _SET_INTERFACE, struct.pack("16sH", device.encode(), _TUN_WITHOUT_HEADER))
    _ip("link", "set", device, "netns", namespace)
    _ip("-n", namespace, "address", "add", f"{address}/30", "dev", device)
    _ip("-n", namespace, "link", "set", device, "up")
    return end


def _forward(network: LossyNetwork, wire: list[int], rate: float, chance: random.Random) -> None:
    other = {wire[0]: wire[1], wire[1]: wire[0]}
    while not network._stop.is_set():
        for end in select.select(wire, [], [], 0.2)[0]:
            try:
                packet = os.read(end, _LARGEST_PACKET)
                if chance.random() < rate:
                    network.lost += 1
                    continue
                os.write(other[end], packet)
                network.passed += 1
            except OSError:  # the queue of the other end is full: lost as well
                network.lost += 1


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
