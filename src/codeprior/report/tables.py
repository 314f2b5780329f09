"""The tables of the report: results as they stand in the manifests, in people's words and units."""

from __future__ import annotations

from typing import Any

import numpy as np

from codeprior.artifact import Manifest, short
from codeprior.report.format import NONE, Column, Row, Table, count, duration, number, parameters, percent
from codeprior.report.gather import Findings
from codeprior.report.names import Names, method_name

STAGES = {
    "tokenizer": "train-tokenizer",
    "classifier": "train-classifier",
    "codes": "encode",
    "replacement": "reconstruct",
    "checkpoint": "train",
    "samples": "sample",
    "evaluation": "evaluate",
}


def _stage(manifest: Manifest) -> str:
    """The verb that made an artifact."""
    return "convert" if "recognised" in manifest.results else STAGES.get(manifest.kind, manifest.kind)


def tokenizers(findings: Findings) -> Table:
    """Tokenizers: size, quality on the images trained on, codes in use."""
    columns = [
        Column("Tokenizer", numeric=False),
        Column("Parameters"),
        Column("PSNR", "training images, dB"),
        Column("Codes in use"),
        Column("Training", "images a second"),
        Column("Codebook", numeric=False),
    ]
    rows = []
    for manifest in findings.of("tokenizer"):
        r = manifest.results
        cells = [
            findings.place(manifest.folder),
            parameters(r.get("n_parameters")),
            number(r.get("train_psnr_db")),
            used_codes(r),
            number(r.get("images_per_s"), 0),
            short(r.get("codebook_digest", "")),
        ]
        rows.append(Row(cells))
    return Table(columns, rows).without_empty_columns()


def used_codes(results: dict[str, Any]) -> str:
    """Codes in use out of all: 255 of 256."""
    used, size = results.get("codes_used"), results.get("codebook_size")
    return NONE if used is None or size is None else f"{count(used)} of {count(size)}"


def codes(findings: Findings) -> Table:
    """Code stores: what was encoded and how evenly it uses the codebook."""
    columns = [
        Column("Codes", numeric=False),
        Column("Images"),
        Column("Views", "of each image"),
        Column("Tokens", "of each view"),
        Column("Codes in use"),
        Column("Entropy", "nats per token"),
        Column("Skipped", "images"),
    ]
    rows = []
    for manifest in findings.of("codes"):
        r = manifest.results
        cells = [
            findings.place(manifest.folder),
            count(r.get("n_images")),
            count(r.get("n_views")),
            count(r.get("n_tokens")),
            used_codes(r),
            number(r.get("unigram_entropy_nats"), 3),
            count(r.get("n_skipped")) if r.get("n_skipped") else NONE,
        ]
        rows.append(Row(cells))
    return Table(columns, rows).without_empty_columns()


def priors(names: Names) -> Table:
    """Priors: how many clusters, how unequal."""
    columns = [
        Column("Prior", numeric=False),
        Column("Codes"),
        Column("Clusters"),
        Column("Largest", "codes"),
        Column("Median", "codes"),
        Column("Of one code", "clusters"),
        Column("Dead codes"),
        Column("Tree", numeric=False),
        Column("File", numeric=False),
    ]
    rows = []
    files = sorted(names.findings.priors, key=lambda file: (names.methods.index(file.prior.method), file.path))
    for file in files:
        prior, sizes = file.prior, file.prior.sizes
        cells = [
            method_name(prior.method),
            count(len(prior)),
            count(prior.n_clusters),
            count(int(sizes.max())),
            number(float(np.median(sizes)), 0 if np.median(sizes) % 1 == 0 else 1),
            count(int((sizes == 1).sum())),
            count(int((~prior.live).sum())) if prior.usage is not None else NONE,
            "yes" if prior.linkage is not None else "no",
            names.findings.place(file.path),
        ]
        rows.append(Row(cells, names.method_color(prior.method)))
    return Table(columns, rows).without_empty_columns()


def models(names: Names) -> Table:
    """Transformers: size, vocabulary, likelihood."""
    columns = [
        Column("Model", "predicts", numeric=False),
        Column("Vocabulary"),
        Column("Parameters"),
        Column("Held-out ↓", "nats per token"),
        Column("Training ↓", "nats per token"),
        Column("Second stage ↓", "held-out, given clusters"),
        Column("Training", "images a second"),
    ]
    rows = []
    for manifest in names.in_order("checkpoint"):
        r = manifest.results
        cells = [
            names.label(manifest),
            count(r.get("vocab_size")),
            parameters(r.get("n_parameters")),
            number(r.get("heldout_nats_per_token"), 3),
            number(r.get("train_nats_per_token"), 3),
            number(r.get("heldout_nats_per_token_given_clusters"), 3),
            number(r.get("images_per_s"), 0),
        ]
        rows.append(Row(cells, names.color(manifest)))
    note = (
        "Nats per token are those of the token itself for every model: to a cluster's loss the log of its size is "
        "added, since its token is picked at random. Training runs with dropout, held-out images without."
    )
    if any(manifest.results.get("objective") == "refine" for manifest in names.in_order("checkpoint")):
        note += " A second stage predicts tokens whose clusters are given: it has the rest of their nats alone."
    return Table(columns, rows, note).without_empty_columns()


def classifiers(findings: Findings) -> Table:
    """Feature networks of ours: how good a judge each is."""
    columns = [
        Column("Judge", numeric=False),
        Column("Accuracy", "held-out images"),
        Column("Accuracy", "training images"),
        Column("Parameters"),
    ]
    rows = []
    for manifest in findings.of("classifier"):
        r = manifest.results
        accuracies = [percent(r.get("heldout_accuracy")), percent(r.get("train_accuracy"))]
        rows.append(
            Row([r.get("name", findings.place(manifest.folder)), *accuracies, parameters(r.get("n_parameters"))])
        )
    return Table(columns, rows).without_empty_columns()


def timings(findings: Findings) -> list[dict[str, Any]]:
    """Seconds of each artifact, in the order in which they were made, and their share of the longest, percent."""
    longest = max((manifest.time_s for manifest in findings.manifests), default=0) or 1
    return [
        {
            "stage": _stage(manifest),
            "place": findings.place(manifest.folder),
            "time": duration(manifest.time_s),
            "share": f"{100 * manifest.time_s / longest:.1f}",
        }
        for manifest in _by_age(findings)
    ]


def settings(findings: Findings) -> list[dict[str, Any]]:
    """What each artifact and prior was made with: settings, seed, digests of its inputs, its own."""
    described = [
        {
            "stage": _stage(manifest),
            "place": findings.place(manifest.folder),
            "seed": manifest.settings.get("seed"),
            "settings": {name: _brief(value) for name, value in manifest.settings.items()},
            "inputs": {name: short(digest) for name, digest in manifest.inputs.items()},
            "digest": short(manifest.digest),
        }
        for manifest in _by_age(findings)
    ]
    described += [
        {
            "stage": "extract",
            "place": findings.place(file.path),
            "seed": file.prior.seed,
            "settings": {name: _brief(value) for name, value in file.prior.parameters.items()},
            "inputs": {"codebook": short(file.prior.codebook_digest)},
            "digest": short(file.digest),
        }
        for file in findings.priors
    ]
    return described


def _brief(value: Any) -> str:
    return short(value) if isinstance(value, str) and value.startswith("sha256:") else str(value)


def _by_age(findings: Findings) -> list[Manifest]:
    return sorted(findings.manifests, key=lambda manifest: manifest.created)


def versions(findings: Findings) -> dict[str, str]:
    """Versions and machine, each once; several where artifacts were made with several."""
    found: dict[str, list[str]] = {}
    for manifest in findings.manifests:
        for name, value in manifest.environment.items():
            if str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    names = sorted(found, key=lambda name: (name != "codeprior", name != "python", name == "machine", name))
    return {name: ", ".join(found[name]) for name in names}
