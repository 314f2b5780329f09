"""A user's own code, named on the command line: `package.module:function` or `path/file.py:function`."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from codeprior.errors import InputError
from codeprior.hub import is_on_hub

_NAMED = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*|.+\.py):(?P<name>[A-Za-z_]\w*)")


def is_own(source: Path | str) -> bool:
    """Whether a source names a function of the user's own."""
    return _NAMED.fullmatch(str(source)) is not None and not is_on_hub(source) and not Path(source).exists()


def call_own(source: Path | str) -> Any:
    """Import what a source names, with the current folder in reach, and call it.

    Raises
    ------
    InputError
        If there is no such module, file or function. Errors of the user's code come as they are.
    """
    match = _NAMED.fullmatch(str(source))
    if match is None:
        raise InputError(f"{source} must be package.module:function or file.py:function")
    module = _from_file(Path(match["module"])) if match["module"].endswith(".py") else _import(match["module"])
    function = getattr(module, match["name"], None)
    if not callable(function):
        raise InputError(f"{match['module']} has no function {match['name']}")
    return function()


def _import(name: str) -> ModuleType:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and misses something itself
        raise InputError(f"no module {name}; it must be installed, or below {Path.cwd()}") from None


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    name = f"codeprior_own_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
