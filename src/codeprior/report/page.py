"""The page: everything that was found, put into the template."""

from __future__ import annotations

from typing import Any

import codeprior.report.pictures as pictures
import codeprior.report.summary as summary
import codeprior.report.tables as tables
from codeprior.artifact import Manifest
from codeprior.report.gather import Findings
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
    palette = pictures.colors(findings)
    order = ["token", *(method for method in palette if method != "token")]
    samples, evaluations, models = (
        findings.by_method(findings.of(kind), order) for kind in ("samples", "evaluation", "checkpoint")
    )
    grids = [pictures.sample_grid(findings, manifest, palette) for manifest in samples]
    return {
        "headline": summary.headline(findings),
        "findings": summary.findings_in_words(findings),
        "grids": [grid for grid in grids if grid],
        "generation": tables.generation(findings, evaluations, palette),
        "tests": [_test(findings, test, palette) for test in findings.of("replacement")],
        "priors": tables.priors(findings, palette),
        "sizes_plot": pictures.sizes_plot(findings, palette),
        "models": tables.models(findings, models, palette),
        "loss_plots": pictures.loss_plots(findings, palette),
        "tokenizers": tables.tokenizers(findings),
        "codes": tables.codes(findings),
        "classifiers": tables.classifiers(findings),
        "timings": tables.timings(findings),
        "versions": tables.versions(findings),
        "settings": tables.settings(findings),
        "problems": findings.problems,
    }


def _test(findings: Findings, test: Manifest, palette: dict[str, str]) -> dict[str, Any]:
    strips, names = pictures.replacement_strips(test)
    place = findings.place(test.folder)
    return {"place": place, "strips": strips, "columns": names, "table": tables.replacement(test, palette)}
