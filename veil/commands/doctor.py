"""`veil doctor`: look at this machine and say what is missing or wrong, and how to mend it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer

_LEAST_DISK = 2e9
_LEAST_MEMORY = 2e9


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        name: what was looked at.
        good: whether it is as it should be.
        needed: whether Veil can't do without it.
        text: what was found; where it is not good, also what to do.
    """

    name: str
    good: bool
    needed: bool
    text: str


Check = tuple[str, Callable[[], "Finding | list[Finding]"]]
"""Its name, and what it finds."""


def doctor(
    site: Annotated[Path | None, typer.Option("--site", help="A site's home: check that too.", metavar="HOME")] = None,
) -> int:
    """Check Python, packages, devices, disk and data; exit 1 if something needed is missing or wrong."""
    from rich.console import Console

    console = Console(highlight=False)
    findings = examine() if site is None else _of_site(site)
    for finding in findings:
        mark = "[green]ok     [/]" if finding.good else "[red]wrong  [/]" if finding.needed else "[yellow]note   [/]"
        console.print(f"{mark} {finding.name}: ", end="")
        console.print(finding.text, markup=False, soft_wrap=True)
    bad = sum(not finding.good and finding.needed for finding in findings)
    console.print(f"\n{'all that is needed is there' if not bad else f'{bad} needed things are missing or wrong'}")
    return 1 if bad else 0


def examine() -> list[Finding]:
    """Every check of the machine, in order."""
    checks: tuple[Check, ...] = (
        ("python", _python),
        ("packages", _packages),
        ("ray", _ray),
        ("device", _device),
        ("memory", _memory),
        ("disk", _disk),
        ("data", _data),
    )
    return run_checks(checks)


def run_checks(checks: Iterable[Check]) -> list[Finding]:
    """What each check finds; one that breaks is itself a finding."""
    findings: list[Finding] = []
    for name, check in checks:
        try:
            found = check()
        except Exception as error:  # a broken library breaks in its own ways; the doctor goes on
            found = Finding(name, False, True, f"the check itself failed: {type(error).__name__}: {error}")
        findings += found if isinstance(found, list) else [found]
    return findings


def _of_site(home: Path) -> list[Finding]:
    """What a client needs of the machine, and how the site stands."""
    from security.homes import SiteHome
    from veil.commands.asking import passphrase_for
    from veil.site_doctor import examine_site

    place = SiteHome(home)
    machine = run_checks((("python", _python), ("packages", _packages)))
    return machine + examine_site(place, passphrase_for(place.identity_key))


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", good, True, found if good else f"{found}; Veil needs 3.11 or newer: install it")


def _packages() -> list[Finding]:
    from packaging.requirements import Requirement

    findings = []
    for text in requires("veil-fl") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            findings.append(Finding(requirement.name, False, True, f"not installed; pip install '{requirement}'"))
            continue
        good = requirement.specifier.contains(found, prereleases=True)
        hint = "" if good else f"; Veil needs {requirement.specifier}: pip install '{requirement}'"
        findings.append(Finding(requirement.name, good, True, found + hint))
    return findings


def _ray() -> Finding:
    try:
        return Finding("ray (simulation)", True, False, version("ray"))
    except PackageNotFoundError:
        hint = "not installed; for simulations: pip install 'veil-fl[simulation]', or use --engine inline"
        return Finding("ray (simulation)", False, False, hint)


def _device() -> Finding:
    """The fastest device there is."""
    import torch

    if torch.cuda.is_available():
        return Finding("device", True, False, f"CUDA, {torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    if torch.backends.mps.is_available():
        return Finding("device", True, False, "MPS (Apple)")
    if torch.version.cuda is None:
        return Finding("device", True, False, f"CPU, {os.cpu_count()} cores (torch is a CPU build)")
    hint = "torch is a CUDA build but sees no GPU; check the driver (nvidia-smi), or go on with the CPU"
    return Finding("device", False, False, hint)


def _memory() -> Finding:
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    good = free >= _LEAST_MEMORY
    hint = "" if good else "; a Ray worker takes about 0.5 GB: free some, or use --workers 1 or --engine inline"
    return Finding("memory", good, False, f"{free / 1e9:.1f} GB free{hint}")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    if not os.access(Path.cwd(), os.W_OK):
        return Finding("disk", False, True, f"{Path.cwd()} can't be written; run from another folder, or give --out")
    good = free >= _LEAST_DISK
    hint = "" if good else "; checkpoints and Ray's store need room: free some"
    return Finding("disk", good, False, f"{free / 1e9:.1f} GB free in {Path.cwd()}{hint}")


def _data() -> Finding:
    from client.datasets.fashion_mnist import DEBIAN

    good = DEBIAN.is_dir()
    hint = "for the fashion scenarios: apt-get install dataset-fashion-mnist, or --set data.path=DIR"
    return Finding("fashion-mnist", good, False, str(DEBIAN) if good else f"not at {DEBIAN}; {hint}")
