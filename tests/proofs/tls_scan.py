"""A scan of a running server's TLS by `sslyze`, in an environment of its own: it needs an older `cryptography`.

    python -m tests.proofs.tls_scan --environment build/sslyze

provisions a federation, starts its server (`veil server start`), and scans it with a site's certificate. Only TLS 1.2
and 1.3, only suites with authenticated encryption and forward secrecy, and none of the vulnerabilities that the scanner
knows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any, Final

from simulations.deployment.pilot import Pilot

SITE: Final = "north"
_SERVING: Final = "serving "  # how the line begins that says the port is open
_SECONDS: Final = 180.0  # for a process to start, on a machine that does much else
_SCANS: Final = (
    *("--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--heartbleed", "--openssl_ccs"),
    *("--robot", "--reneg", "--compression", "--fallback", "--ems", "--elliptic_curves"),
)
_REFUSED: Final = ("ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1")
_TAKEN: Final = ("tls_1_2", "tls_1_3")
_AUTHENTICATED: Final = ("GCM", "CHACHA20_POLY1305", "CCM")
# What a sound server answers, for each check the scanner makes.
_SOUND: Final[dict[str, dict[str, object]]] = {
    "heartbleed": {"is_vulnerable_to_heartbleed": False},
    "openssl_ccs_injection": {"is_vulnerable_to_ccs_injection": False},
    "session_renegotiation": {
        "is_vulnerable_to_client_renegotiation_dos": False,
        "supports_secure_renegotiation": True,
    },
    "tls_compression": {"supports_compression": False},
    "tls_fallback_scsv": {"supports_fallback_scsv": True},
    "tls_extended_master_secret": {"supports_ems_extension": True},
}


def scanner(environment: Path) -> Path:
    """The scanner's command, installed into an environment of its own if it isn't there yet."""
    command = environment / "bin" / "sslyze"
    if not command.is_file():
        venv.create(environment, with_pip=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "sslyze==6.3.1"], check=True)
    return command


def scan(command: Path, port: int, certificate: Path, key: Path) -> dict[str, Any]:
    """What the scanner finds at a port of loopback, by check.

    Raises:
        RuntimeError: it could not finish one of its checks.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        arguments = [*_SCANS, "--mozilla_config", "disable", "--cert", str(certificate), "--key", str(key)]
        subprocess.run(
            [str(command), *arguments, "--json_out", str(found), f"127.0.0.1:{port}"],
            check=True,
            capture_output=True,
            timeout=300,
        )
        checks: dict[str, Any] = json.loads(found.read_bytes())["server_scan_results"][0]["scan_result"]
    asked = [*(f"{version}_cipher_suites" for version in (*_REFUSED, *_TAKEN)), "robot", "elliptic_curves", *_SOUND]
    unfinished = [name for name in asked if (checks or {}).get(name, {}).get("status") != "COMPLETED"]
    if unfinished:
        raise RuntimeError(f"the scanner did not finish {', '.join(unfinished)}")
    return {name: checks[name]["result"] for name in asked}


def suites(found: dict[str, Any], version: str) -> list[str]:
    """Names of the suites that are taken under a version of TLS."""
    return [suite["cipher_suite"]["name"] for suite in found[f"{version}_cipher_suites"]["accepted_cipher_suites"]]


def problems(found: dict[str, Any]) -> list[str]:
    """What is not as it should be."""
    wrong = [f"{version} is spoken" for version in _REFUSED if suites(found, version)]
    wrong += [f"{version} is not spoken" for version in _TAKEN if not suites(found, version)]
    for version in _TAKEN:
        for name in suites(found, version):
            if not any(kind in name for kind in _AUTHENTICATED):
                wrong.append(f"{name}: no authenticated encryption")
            if version == "tls_1_2" and not name.startswith(("TLS_ECDHE_", "TLS_DHE_")):
                wrong.append(f"{name}: no forward secrecy")
    if not found["robot"]["robot_result"].startswith("NOT_VULNERABLE"):
        wrong.append("vulnerable to ROBOT")
    for name, sound in _SOUND.items():
        wrong += [f"{name}: {key} is {found[name][key]}" for key, value in sound.items() if found[name][key] != value]
    return wrong


def report(found: dict[str, Any]) -> str:
    """The scan in a few lines."""
    lines = [f"refused: {', '.join(map(_spoken, _REFUSED))}"]
    lines += [f"{_spoken(version)}: {', '.join(suites(found, version))}" for version in _TAKEN]
    curves = [curve["name"] for curve in found["elliptic_curves"]["supported_curves"]]
    lines.append(f"key exchange: {', '.join(curves)}")
    lines.append(f"robot: {found['robot']['robot_result']}")
    lines += [f"{name}: {key} {found[name][key]}" for name, sound in _SOUND.items() for key in sound]
    return "\n".join(lines)


def _spoken(version: str) -> str:
    kind, *numbers = version.split("_")
    return f"{kind.upper()} {'.'.join(numbers)}"


def main() -> int:
    """Scan a server of Veil's, print what was found and keep it; 1 if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--environment", type=Path, default=Path("build/sslyze"))
    parser.add_argument("--evidence", type=Path, default=Path("docs/evidence/tls.txt"))
    given = parser.parse_args()
    command = scanner(given.environment.absolute())
    with tempfile.TemporaryDirectory() as folder:
        pilot = Pilot.provision(Path(folder), [SITE])
        pilot.configure_server({})
        pilot.start_server("start", str(pilot.server.path), "--stay")
        try:
            _wait_until_it_serves(pilot)
            site = pilot.site(SITE)
            found = scan(command, pilot.port, site.certificate, site.tls_key)
            lines = pilot.output("server").splitlines()
            if pilot.stop("server"):
                raise RuntimeError(f"the server did not end well after the scan\n{pilot.output('server')}")
        finally:
            pilot.close()
    wrong = problems(found)
    wrong += [f"the server said: {line}" for line in lines if not line.startswith(_SERVING)]
    text = (
        f"sslyze {_version(command)}, with a site's certificate, of `veil server start` on loopback\n{report(found)}\n"
    )
    text += "".join(f"PROBLEM: {line}\n" for line in wrong) or "no problem\n"
    print(text, end="")
    given.evidence.parent.mkdir(parents=True, exist_ok=True)
    given.evidence.write_text(text, encoding="utf-8")
    return 1 if wrong else 0


def _wait_until_it_serves(pilot: Pilot) -> None:
    deadline = time.monotonic() + _SECONDS
    while not any(line.startswith(_SERVING) for line in pilot.output("server").splitlines()):
        if pilot.processes["server"].poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server does not serve\n{pilot.output('server')}")
        time.sleep(0.2)


def _version(command: Path) -> str:
    ask = "import importlib.metadata as m; print(m.version('sslyze'))"
    done = subprocess.run([str(command.with_name("python")), "-c", ask], check=True, capture_output=True, text=True)
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
