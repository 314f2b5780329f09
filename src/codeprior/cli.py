"""The command line: parses, calls, prints; no logic.

A verb is a function `verb(config) -> dict` in its room. Rooms are imported when their verb runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import os
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from codeprior import config as settings
from codeprior.errors import InputError
from codeprior.version import VERSION

VERBS: dict[str, tuple[type[settings.VerbConfig], str]] = {
    "train-tokenizer": (settings.TrainTokenizerConfig, "codeprior.tokenizers.training:train_tokenizer"),
    "encode": (settings.EncodeConfig, "codeprior.codes:encode"),
    "import-codes": (settings.ImportCodesConfig, "codeprior.exchange:import_codes"),
    "export-codes": (settings.ExportCodesConfig, "codeprior.exchange:export_codes"),
    "verify-codes": (settings.VerifyCodesConfig, "codeprior.verify:verify_codes"),
    "convert": (settings.ConvertConfig, "codeprior.convert:convert"),
    "extract": (settings.ExtractConfig, "codeprior.extract:extract"),
    "inspect": (settings.InspectConfig, "codeprior.inspection:inspect"),
    "reconstruct": (settings.ReconstructConfig, "codeprior.reconstruct:reconstruct"),
    "train": (settings.TrainConfig, "codeprior.train:train"),
    "sample": (settings.SampleConfig, "codeprior.generation.sample:sample"),
    "train-classifier": (settings.TrainClassifierConfig, "codeprior.evaluation.classifier:train_classifier"),
    "reference": (settings.ReferenceConfig, "codeprior.evaluation.reference:reference"),
    "evaluate": (settings.EvaluateConfig, "codeprior.evaluation.judge:evaluate"),
    "push": (settings.PushConfig, "codeprior.push:push"),
    "report": (settings.ReportConfig, "codeprior.report:report"),
    "demo": (settings.DemoConfig, "codeprior.demo:demo"),
    "doctor": (settings.DoctorConfig, "codeprior.doctor:doctor"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb; exits with 0, with 2 after a caller's mistake, or with 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_usage())
        return
    if arguments[0] == "--version":
        print(f"codeprior {VERSION}")
        return
    verb = arguments[0]
    try:
        config = parse(verb, arguments[1:])
        if config.dry_run:
            print(_as_yaml(config), end="")
            return
        show(run(verb, config), as_json=config.json)
    except InputError as error:
        _fail(verb, str(error), 2)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the interpreter's own last flush
        raise SystemExit(0) from None
    except (OSError, MemoryError) as error:
        _fail(verb, str(error) or type(error).__name__, 2)
    except KeyboardInterrupt:
        _fail(verb, "interrupted; run the same command again to continue", 130)


def parse(verb: str, arguments: Sequence[str]) -> settings.VerbConfig:
    """The settings that a verb is asked to run with.

    Raises
    ------
    InputError
        If the verb or a flag is unknown, or a value is not allowed.
    """
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        raise InputError(f"no verb {verb!r}; {f'perhaps you meant {near[0]!r}' if near else 'see codeprior --help'}")
    config_class = VERBS[verb][0]
    hints = typing.get_type_hints(config_class, include_extras=True)
    given = list(arguments)
    recipe = _recipe_path(given)
    if recipe is not None:
        given = _recipe_arguments(recipe, hints, given) + given
    return _parse_flags(verb, config_class, list(_canonical(given, hints)))


def run(verb: str, config: settings.VerbConfig) -> dict[str, Any]:
    """Import the verb's room and call it."""
    module, function = VERBS[verb][1].split(":")
    result: dict[str, Any] = getattr(importlib.import_module(module), function)(config)
    return result


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result: numbers as rows, lists of rows as tables, warnings on standard error, JSON last."""
    for warning in result.get("warnings", ()):
        print(f"warning: {warning}", file=sys.stderr)
    rows = {name: value for name, value in result.items() if name not in ("output", "warnings")}
    scalars = {name: value for name, value in rows.items() if not isinstance(value, list | dict)}
    width = max(map(len, scalars), default=0)
    for name, value in scalars.items():
        print(f"{name:<{width}}  {_cell(value)}")
    for name, value in rows.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"\n{name}")
            _print_table(value)
    if result.get("output"):
        print(f"→ {result['output']}")
    if as_json:
        print(json.dumps(result, default=str))


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {_summary(config_class)}" for verb, (config_class, _) in VERBS.items()]
    return "\n".join(
        [
            "usage: codeprior VERB [--help] [--config recipe.yaml] [flags]",
            "",
            "Puts a codebook's knowledge of which tokens look alike to work in autoregressive image generation.",
            "",
            *lines,
            "",
            "Try it: codeprior demo",
        ]
    )


def _summary(config_class: type) -> str:
    return (config_class.__doc__ or "").split("\n")[0]


def _parse_flags(verb: str, config_class: type[settings.VerbConfig], arguments: list[str]) -> settings.VerbConfig:
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config_class, args=arguments, prog=f"codeprior {verb}", description=_summary(config_class))
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
        named = {path.stem: path for path in (Path(__file__).parent / "recipes").glob("*.yaml")}
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


def _as_yaml(config: settings.VerbConfig) -> str:
    import yaml

    values = {
        field.name: _plain(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.name not in ("json", "dry_run", "config")
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _print_table(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns] + [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if value is None:
        return "-"
    return str(value)


def _fail(verb: str, message: str, code: int) -> typing.NoReturn:
    name = f"codeprior {verb}" if verb in VERBS else "codeprior"
    print(f"{name}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(code)
