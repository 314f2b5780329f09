"""Settings of the verbs that look at everything at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from codeprior.config.base import VerbConfig


@dataclass(frozen=True, kw_only=True)
class ReportConfig(VerbConfig):
    """Gather every artifact below a folder into one self-contained HTML page."""

    folder: Positional[Path]
    """Where the artifacts are."""
    output: Path | None = None
    """The page; default: report.html in the folder."""
    title: str = "codeprior report"
    """Its headline."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig(VerbConfig):
    """Everything at once, on data that is installed already: tokenizer, priors, transformers, samples, report."""

    data: Literal["digits", "photos12"] = "digits"
    """digits takes about 3 minutes on two CPU cores, photos12 about 8."""
    full: bool = False
    """Also IAR, a factorised output, and a second stage that refines DCPE's clusters; half as long again."""
    output: Path | None = None
    """Folder of the run; default: demo/<data>. Run again to continue or to redo only what changed."""


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(VerbConfig):
    """Show the environment and the devices, what is missing and how to get it."""
