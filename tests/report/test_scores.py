"""Tables of scores: what does not compare is told apart."""

from pathlib import Path
from typing import Any

from codeprior.artifact import Manifest
from codeprior.report.format import Table
from codeprior.report.gather import Findings
from codeprior.report.names import Names
from codeprior.report.scores import generation, likelihoods


def manifest(kind: str, name: str, results: dict[str, Any] | None = None, **inputs: str) -> Manifest:
    files = {"model": {"bytes": 1, "digest": name}}
    return Manifest(Path("run") / kind / name, kind, {}, inputs, files, results or {}, 1.0)


MODEL = manifest("checkpoint", "token", {"objective": "token", "method": None})
SAMPLES = manifest("samples", "token", checkpoint=MODEL.digest)


def names(*manifests: Manifest) -> Names:
    return Names(Findings(Path("run"), [MODEL, SAMPLES, *manifests], []))


def column(table: Table, title: str) -> list[str]:
    """The cells of a column; none where the table has no such column."""
    titles = [column.title for column in table.columns]
    return [row.cells[titles.index(title)] for row in table.rows] if title in titles else []


def judged(reference: str, n_reference: int) -> Manifest:
    results = {"FD[cnn]": 2.0, "n_samples": 1000, "n_reference": n_reference, "reference": reference}
    return manifest("evaluation", reference, results, samples=SAMPLES.digest, reference=reference)


def test_the_reference_of_a_score_is_told_where_there_are_several() -> None:
    one, other = judged("digits", 1500), judged("digits:heldout", 297)
    assert column(generation(names(one)), "Judged by") == []
    table = generation(names(one, other))
    assert column(table, "Judged by") == ["1,500 images of digits", "297 images of digits:heldout"]
    assert table.note.startswith("Reference: 1,500 images of digits. Reference: 297 images of digits:heldout.")


def test_the_codes_of_a_likelihood_are_told_where_there_are_several() -> None:
    stores = [manifest("codes", name) for name in ("seen", "heldout")]
    results = {
        "nats_per_token": 5.0,
        "never_made": 0,
        "n_images": 9,
        "n_views": 1,
        "unigram_nats_per_token": 5.3,
    }
    measured = [manifest("likelihood", s.folder.name, results, checkpoint=MODEL.digest, codes=s.digest) for s in stores]
    assert column(likelihoods(names(*stores, *measured[:1])), "Codes") == []
    assert column(likelihoods(names(*stores, *measured)), "Codes") == ["codes/heldout", "codes/seen"]
