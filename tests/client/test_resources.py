"""How much memory a client says it took: its own, not that of whoever has started it."""

from __future__ import annotations

import subprocess
import sys

from client.resources import peak_memory

ASK = "from client.resources import peak_memory; print(peak_memory())"


def test_peak_memory_is_the_processs_own() -> None:
    held = bytearray(b"x") * (200 << 20)
    assert peak_memory() >= len(held)
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=120)
    assert 1 << 20 < int(done.stdout) < len(held)
