"""One page that tells what a folder of artifacts holds: verb `report`. It formats what the manifests say, no more."""

from __future__ import annotations

from typing import Any

from codeprior.artifact import write_atomically
from codeprior.config import ReportConfig
from codeprior.report.gather import gather
from codeprior.report.page import render


def report(config: ReportConfig) -> dict[str, Any]:
    """Gather every artifact below a folder into one self-contained HTML page: no other file, network or script.

    Returns
    -------
    dict
        output, n_artifacts, n_priors, n_left_out (unfinished or damaged ones, which the page names).

    Raises
    ------
    InputError
        If there is no such folder, or nothing of ours below it.
    """
    findings = gather(config.folder)
    output = config.output or config.folder / "report.html"
    page = render(findings, config.title)
    with write_atomically(output) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return {
        "output": str(output),
        "n_artifacts": len(findings.manifests),
        "n_priors": len(findings.priors),
        "n_left_out": len(findings.problems),
    }
