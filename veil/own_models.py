"""`--model NAME=REFERENCE`: networks of the user's own on the command line."""

from __future__ import annotations

from collections.abc import Iterable

from security.errors import UsageError

HELP = "A network of your own: NAME=package.module:function, NAME=file.py:function or NAME=hugging-face:FOLDER."


def parse_models(given: Iterable[str] | None) -> dict[str, str]:
    """References by name.

    Raises:
        UsageError: a text is no `NAME=REFERENCE`, or a name is there twice.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, reference = text.partition("=")
        if not equals or not name or not reference:
            raise UsageError(
                f"--model {text!r}: give NAME= and package.module:function, file.py:function or hugging-face:FOLDER"
            )
        if name in found:
            raise UsageError(f"--model {name}: is there twice; keep one")
        found[name] = reference
    return found
