"""What commands ask a person for: passphrases, which are never arguments, and a yes."""

from __future__ import annotations

import sys
from pathlib import Path

import typer


def passphrase_for(key: Path) -> str | None:
    """The passphrase of a key: from the file that VEIL_PASSPHRASE_FILE names, or asked for; None if it needs none.

    Raises:
        UsageError: it needs one, nobody is there to be asked, and no file is named.
    """
    from security.errors import UsageError
    from security.key_files import PASSPHRASE_FILE, is_encrypted, passphrase_from_file

    if not is_encrypted(key):
        return None
    found = passphrase_from_file()
    if found is not None:
        return found
    if not sys.stdin.isatty():
        raise UsageError(f"{key}: needs its passphrase; put it into a file of mode 600, named by {PASSPHRASE_FILE}")
    return str(typer.prompt(f"passphrase of {key}", hide_input=True, err=True))


def new_passphrase() -> str:
    """A passphrase for a new key: from the file that VEIL_PASSPHRASE_FILE names, or asked for twice.

    Raises:
        UsageError: nobody is there to be asked, and no file is named.
    """
    from security.errors import UsageError
    from security.key_files import PASSPHRASE_FILE, passphrase_from_file

    found = passphrase_from_file()
    if found is not None:
        return found
    if not sys.stdin.isatty():
        raise UsageError(f"--passphrase: put it into a file of mode 600, named by {PASSPHRASE_FILE}")
    return str(typer.prompt("passphrase for the new keys", hide_input=True, confirmation_prompt=True, err=True))


def agreed(question: str, *, instead: str) -> bool:
    """Whether a person says yes.

    Args:
        question: to be answered with yes or no; no is the default.
        instead: what to give on the command line where nobody can be asked.

    Raises:
        UsageError: nobody is there to be asked.
    """
    from security.errors import UsageError

    if not sys.stdin.isatty():
        raise UsageError(f"this needs a person's yes, and nobody can be asked here; give {instead}")
    return typer.confirm(question, default=False, err=True)
