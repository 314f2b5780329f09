"""Flags and recipes to settings: one parser for both, strict, whose errors are one line."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from codeprior.config.base import VerbConfig
from codeprior.errors import InputError

Settings = TypeVar("Settings", bound=VerbConfig)
_RECIPES = Path(__file__).parent.parent / "recipes"


def parse_settings(config_class: type[Settings], verb: str, arguments: Sequence[str]) -> Settings:
    """The settings of a verb that its arguments ask for.

    Raises
    ------
    InputError
        If a flag is unknown, or a value is not allowed.
    """
    hints = typing.get_type_hints(config_class, include_extras=True)
    given = list(arguments)
    recipe = _recipe_path(given)
    if recipe is not None:
        given = _recipe_arguments(recipe, hints, given) + given
    return _parse_flags(verb, config_class, list(_canonical(given, hints)))


def summary(config_class: type) -> str:
    """What a verb does, in a line."""
    return (config_class.__doc__ or "").split("\n")[0]


def _parse_flags(verb: str, config_class: type[Settings], arguments: list[str]) -> Settings:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, args=arguments, prog=f"codeprior {verb}", description=summary(config_class))
    except SystemExit as stop:
        if stop.code in (0, None):  # --help
            raise
        raise InputError(_one_line(said.getvalue()) + f"; see codeprior {verb} --help") from None


def _one_line(box: str) -> str:
    """The text of tyro's error box: what stands between its title and its advice, each followed by a rule.

    The frame is drawn with lines, or with dashes where the terminal's encoding has none.
    """
    parts = re.split(r"^╭.*$|^[│ ]*[─-]{5,}[│ ]*$", box, flags=re.MULTILINE)
    lines = [line.strip("│").rstrip() for line in parts[min(1, len(parts) - 1)].splitlines()]
    names = [line.strip() for line in lines if re.match(r" {5,6}\S", line)]
    if "Required options" in box and names:
        return f"missing: {', '.join(names)}"
    text = " ".join(line.strip() for line in lines).strip(" .")
    return re.sub(r"^Error parsing \w+Config: ", "", text)


def _canonical(arguments: Sequence[str], hints: dict[str, Any]) -> Iterator[str]:
    """The arguments with `--n_clusters` as `--n-clusters`, and switches that may be left open given their value."""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        key = name.removeprefix("--").removeprefix("no-").replace("-", "_")
        if name.startswith("--") and not equals and _is_open_switch(hints.get(key)):
            yield from (f"--{key.replace('_', '-')}", str(not name.startswith("--no-")))
        else:
            yield name + equals + value


def _is_open_switch(hint: Any) -> bool:
    """Whether a setting is true, false or left to the program."""
    return hint is not None and {bool, type(None)} <= set(typing.get_args(_bare(hint)))


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _recipe_path(arguments: list[str]) -> Path | None:
    for i, argument in enumerate(arguments):
        if argument.startswith("--config="):
            return Path(argument.removeprefix("--config="))
        if argument == "--config" and i + 1 < len(arguments):
            return Path(arguments[i + 1])
    return None


def _recipe_arguments(recipe: Path, hints: dict[str, Any], given: list[str]) -> list[str]:
    """The recipe as flags, to stand before the user's own: one parser checks both, and later flags win."""
    import yaml

    if not recipe.is_file():
        named = {path.stem: path for path in _RECIPES.glob("*.yaml")}
        if str(recipe) not in named:
            near = difflib.get_close_matches(str(recipe), named, n=1)
            hint = f"perhaps you meant {near[0]}" if near else f"those that come along: {', '.join(sorted(named))}"
            raise InputError(f"no recipe at {recipe}: there is no such file; {hint}")
        recipe = named[str(recipe)]
    try:
        values = yaml.safe_load(recipe.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{recipe} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{recipe} must hold settings as `name: value`, got a {type(values).__name__}")
    flags: list[str] = []
    positional: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            raise InputError(f"{recipe} sets {key!r}, unknown here{f'; perhaps you meant {near[0]!r}' if near else ''}")
        if value is None:
            continue
        if _is_positional(hints[name]):
            positional += _words(value)
        elif isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
        else:
            flags += [f"--{name.replace('_', '-')}", *_words(value)]
    return (positional if not _gives_positional(given, hints) else []) + flags


def _words(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)]


def _is_positional(hint: Any) -> bool:
    return "Positional" in repr(getattr(hint, "__metadata__", ""))


def _gives_positional(arguments: list[str], hints: dict[str, Any]) -> bool:
    """Whether the user's own arguments hold one that belongs to no flag."""
    taken = 0
    for argument in arguments:
        if argument.startswith("--"):
            hint = hints.get(argument[2:].replace("-", "_"))
            takes_none = "=" in argument or hint is None or hint is bool or _is_open_switch(hint)
            taken = 0 if takes_none else sys.maxsize if typing.get_origin(hint) is tuple else 1
        elif taken:
            taken -= 1
        else:
            return True
    return False
