"""The page: everything that was found, put into the template."""

from __future__ import annotations

from typing import Any

import codeprior.report.pictures as pictures
import codeprior.report.scores as scores
import codeprior.report.summary as summary
import codeprior.report.sweeps as sweeps
import codeprior.report.tables as tables
from codeprior.artifact import Manifest
from codeprior.report.gather import Findings
from codeprior.report.names import Names
from codeprior.version import VERSION

TEMPLATE = "report.html"


def render(findings: Findings, title: str) -> str:
    """The report as one HTML page that needs no other file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("codeprior", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(title=title, version=VERSION, **contents(findings))


def contents(findings: Findings) -> dict[str, Any]:
    """What the template shows; whatever is absent is empty."""
    names = Names(findings)
    grids = [pictures.sample_grid(names, samples) for samples in names.in_order("samples")]
    return {
        "headline": summary.headline(findings),
        "findings": summary.findings_in_words(names),
        "grids": [grid for grid in grids if grid],
        "generation": scores.generation(names),
        "sweeps": sweeps.sweeps(findings),
        "tests": [_test(names, test) for test in findings.of("replacement")],
        "priors": tables.priors(names),
        "sizes_plot": pictures.sizes_plot(names),
        "models": tables.models(names),
        "likelihoods": scores.likelihoods(names),
        "loss_plots": pictures.loss_plots(names),
        "tokenizers": tables.tokenizers(findings),
        "codes": tables.codes(findings),
        "classifiers": tables.classifiers(findings),
        "timings": tables.timings(findings),
        "versions": tables.versions(findings),
        "settings": tables.settings(findings),
        "problems": findings.problems,
    }


def _test(names: Names, test: Manifest) -> dict[str, Any]:
    strips, columns = pictures.replacement_strips(test)
    return {
        "place": names.findings.place(test.folder),
        "replaces": len(test.results["rows"]) > 1,
        "strips": strips,
        "columns": columns,
        "table": scores.replacement(names, test),
    }
