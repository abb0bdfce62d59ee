"""Networks of the user's own: names that this process takes for functions of the user's (rule 7).

A plan names a network, never code. What a name means is said by whoever owns the process: a site in its `site.toml`, a
server in its `server.toml`, a researcher on the command line of a simulation. Three forms of reference:

- `package.module:function`, of an installed package;
- `path/to/file.py:function`;
- `hugging-face:FOLDER`, a network of `transformers` (`shared_models.hugging_face`).

The function is given the form of an example and the plan's options by name: `function(form, **options)`. It returns a
module that maps a batch (n, *form.shape) to logits (n, form.classes), or (n, places, classes) for a language model.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from security.errors import UsageError
from shared_models.example_form import ExampleForm

if TYPE_CHECKING:
    from torch import nn

_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,49}")
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_FILE: Final = re.compile(r".+\.py:[A-Za-z_]\w*")

HUGGING_FACE: Final = "hugging-face:"

_bound: dict[str, str] = {}


def bind(models: Mapping[str, str]) -> None:
    """Have this process take names for these functions; what was bound before is forgotten, by all threads at once.

    Args:
        models: reference by name. One of Veil's own names is refused where a plan asks for it.

    Raises:
        UsageError: a name or reference that can't be. Nothing is imported yet.
    """
    global _bound  # noqa: PLW0603 - what names mean is the process' own
    _bound = references(models)


def references(models: Mapping[str, str], folder: Path | None = None) -> dict[str, str]:
    """Checked references by name, paths in them absolute.

    Args:
        models: as of `bind`.
        folder: where relative paths begin.

    Raises:
        UsageError: as `bind`.
    """
    found = {}
    for name, reference in models.items():
        if not _NAME.fullmatch(name):
            raise UsageError(f"models.{name}: a name is of small letters, digits and hyphens")
        if _FILE.fullmatch(reference):
            path, _, function = reference.rpartition(":")
            found[name] = f"{_absolute(path, folder)}:{function}"
        elif reference.startswith(HUGGING_FACE):
            found[name] = HUGGING_FACE + str(_absolute(reference.removeprefix(HUGGING_FACE), folder))
        elif _FUNCTION.fullmatch(reference):
            found[name] = reference
        else:
            raise UsageError(
                f"models.{name} = {reference!r}: give package.module:function, path/to/file.py:function or "
                "hugging-face:FOLDER"
            )
    return found


def _absolute(path: str, folder: Path | None) -> Path:
    return ((folder or Path()) / Path(path).expanduser()).absolute()


def bound() -> dict[str, str]:
    """References by name."""
    return dict(_bound)


def own_options(name: str, options: Mapping[str, object]) -> dict[str, object]:
    """The options of one's own network with the function's defaults filled in.

    Raises:
        UsageError: the function can't be found, or takes no such options.
    """
    function = _function(name)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(options)
    known = {parameter.name: parameter for parameter in parameters}
    for key in options:
        if key not in known:
            raise UsageError(f"model.options.{key}: unknown option of '{name}'; allowed: {', '.join(known) or 'none'}")
    missing = [key for key, one in known.items() if one.default is one.empty and key not in options]
    if missing:
        raise UsageError(f"model.options.{missing[0]}: '{name}' has no default for it; give it")
    defaults = {key: one.default for key, one in known.items() if one.default is not one.empty}
    chosen = {**defaults, **options}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in chosen.items()}


def build_own(name: str, options: Mapping[str, object], form: ExampleForm) -> nn.Module:
    """The user's network.

    Raises:
        UsageError: its function fails, or gives something else.
    """
    from torch import nn

    function = _function(name)
    try:
        made = function(form, **options)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        where = _bound.get(name)
        raise UsageError(f"model.name = '{name}': {where} failed: {type(error).__name__}: {reason}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"model.name = '{name}': {_bound.get(name)} gave a {type(made).__name__}, not a torch module")
    return made


def _function(name: str) -> Callable[..., Any]:
    reference = _bound.get(name)
    if reference is None:  # the owner has taken it back
        raise UsageError(f"model.name = '{name}': is bound to nothing any more")
    if reference.startswith(HUGGING_FACE):
        from shared_models.hugging_face import build

        return _of_folder(build, reference.removeprefix(HUGGING_FACE))
    where, _, function = reference.rpartition(":")
    try:
        found: Any = getattr(_file(where) if where.endswith(".py") else importlib.import_module(where), function)
    except FileNotFoundError as error:
        raise UsageError(f"models.{name}: {where} is not there") from error
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"models.{name} = '{reference}': {type(error).__name__}: {reason}") from error
    if not callable(found):
        raise UsageError(f"models.{name} = '{reference}': is no function")
    function_found: Callable[..., Any] = found
    return function_found


def _of_folder(build: Callable[..., Any], folder: str) -> Callable[..., Any]:
    """A function whose remaining arguments are the options."""
    given = functools.partial(build, folder=folder)
    signature = inspect.signature(build)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "folder"]
    given.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return given


_files: dict[str, Any] = {}


def _file(path: str) -> Any:
    if path not in _files:
        spec = importlib.util.spec_from_file_location(f"veil_own_{Path(path).stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _files[path] = module
    return _files[path]
