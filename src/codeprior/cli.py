"""The command line: parses, calls, prints; no logic.

A verb is a function `verb(config) -> dict` in its room. Rooms are imported when their verb runs, so that `--help`
answers at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import os
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codeprior import config as settings
from codeprior.config.arguments import parse_settings, summary
from codeprior.errors import InputError, StoppedError
from codeprior.version import VERSION

VERBS: dict[str, tuple[type[settings.VerbConfig], str]] = {
    "train-tokenizer": (settings.TrainTokenizerConfig, "codeprior.tokenizers.training:train_tokenizer"),
    "encode": (settings.EncodeConfig, "codeprior.encoding:encode"),
    "import-codes": (settings.ImportCodesConfig, "codeprior.exchange:import_codes"),
    "export-codes": (settings.ExportCodesConfig, "codeprior.exchange:export_codes"),
    "verify-codes": (settings.VerifyCodesConfig, "codeprior.verify:verify_codes"),
    "convert": (settings.ConvertConfig, "codeprior.convert:convert"),
    "extract": (settings.ExtractConfig, "codeprior.extract:extract"),
    "inspect": (settings.InspectConfig, "codeprior.inspection:inspect"),
    "reconstruct": (settings.ReconstructConfig, "codeprior.reconstruct:reconstruct"),
    "train": (settings.TrainConfig, "codeprior.training.loop:train"),
    "likelihood": (settings.LikelihoodConfig, "codeprior.likelihood:likelihood"),
    "sample": (settings.SampleConfig, "codeprior.generation.sample:sample"),
    "train-classifier": (settings.TrainClassifierConfig, "codeprior.evaluation.classifier:train_classifier"),
    "reference": (settings.ReferenceConfig, "codeprior.evaluation.reference:reference"),
    "evaluate": (settings.EvaluateConfig, "codeprior.evaluation.judge:evaluate"),
    "push": (settings.PushConfig, "codeprior.push:push"),
    "sweep": (settings.SweepConfig, "codeprior.sweep.sweep:sweep"),
    "report": (settings.ReportConfig, "codeprior.report:report"),
    "demo": (settings.DemoConfig, "codeprior.demo:demo"),
    "doctor": (settings.DoctorConfig, "codeprior.doctor:doctor"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one verb.

    Exits with 0, with 1 where a check has not passed, with 2 after a caller's mistake, with 130 after Ctrl-C or 143
    after SIGTERM.
    """
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
        result = run(verb, config)
        show(result, as_json=config.json)
        if result.get("passed") is False:
            raise SystemExit(1)
    except InputError as error:
        _fail(verb, str(error), 2)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the interpreter's own last flush
        raise SystemExit(0) from None
    except (OSError, MemoryError) as error:
        _fail(verb, str(error) or type(error).__name__, 2)
    except StoppedError as stop:
        _fail(verb, str(stop), stop.code)
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
    return parse_settings(VERBS[verb][0], verb, arguments)


def run(verb: str, config: settings.VerbConfig) -> dict[str, Any]:
    """Import the verb's room and call it."""
    module, function = VERBS[verb][1].split(":")
    result: dict[str, Any] = getattr(importlib.import_module(module), function)(config)
    return result


def show(result: dict[str, Any], *, as_json: bool) -> None:
    """Print a result: numbers as rows, lists of rows as tables, warnings on standard error, JSON last.

    One of nothing is that of a process whose work another one tells of.
    """
    if not result:
        return
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
    lines = [f"  {verb:<{width}}  {summary(config_class)}" for verb, (config_class, _) in VERBS.items()]
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
    names = list(dict.fromkeys(name for row in rows for name in row))
    columns = [name for name in names if name.removesuffix("_sd") == name or name.removesuffix("_sd") not in names]
    cells = [columns] + [[_spread(row, name) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _spread(row: dict[str, Any], name: str) -> str:
    """A value, with its standard deviation where the row has one."""
    sd = row.get(f"{name}_sd")
    return _cell(row.get(name)) + ("" if sd is None else f" ± {sd:.2g}")


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
