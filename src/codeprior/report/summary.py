"""What came out, in plain words made from the numbers, whichever way they fall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import Manifest
from codeprior.report.format import count, duration, listing, number, percent, score
from codeprior.report.gather import Findings, read_meta
from codeprior.report.names import Names, method_name
from codeprior.report.scores import judged_by, real_compares, score_names, that_compare

CLEAR = 2.0  # standard deviations of a difference, below which it is called none


_TOKENS = "the choice of the random tokens"
_IMAGES = "another draw of the images"
_REAL = "real images in their place"


@dataclass(frozen=True)
class Finding:
    """A result in words."""

    topic: str
    text: str


@dataclass(frozen=True)
class Score:
    """A method's score with the spread that is known of it; `several` where it is the mean over trained models."""

    name: str
    value: float
    sd: float | None = None
    several: bool = False


def headline(findings: Findings) -> str:
    """What was run, in one line."""
    parts = []
    stores = findings.of("codes")
    if stores:
        largest = max(stores, key=lambda manifest: manifest.results.get("n_images", 0))
        meta, results = read_meta(largest), largest.results
        size, n_classes = meta["image_size"], len(meta["class_names"])
        classes = f"{count(n_classes)} classes" if n_classes > 1 else "one class"
        parts.append(f"{count(results['n_images'])} images of {classes}, {size} × {size} pixels")
        parts.append(f"{count(results['n_tokens'])} tokens an image out of {count(results['codebook_size'])} codes")
    if models := findings.of("checkpoint"):
        parts.append(f"{len(models)} transformer" + ("s" if len(models) > 1 else ""))
    if total_s := sum(manifest.time_s for manifest in findings.manifests):
        parts.append(f"{duration(total_s)} in all")
    return " · ".join(parts)


def findings_in_words(names: Names) -> list[Finding]:
    """What came out: tokenizer, replacement, likelihood, generation, and how far to trust it."""
    return [*_tokenizer(names.findings), *_replacement(names.findings), *_likelihood(names), *_generation(names)]


def _tokenizer(findings: Findings) -> list[Finding]:
    said = []
    for manifest in findings.of("tokenizer"):
        r = manifest.results
        if r.get("codes_used") is not None and r.get("train_psnr_db") is not None:
            used = "all" if r["codes_used"] == r["codebook_size"] else count(r["codes_used"])
            text = (
                f"Rebuilds its training images at {number(r['train_psnr_db'], 1)} dB PSNR and uses {used} of its "
                f"{count(r['codebook_size'])} codes."
            )
            said.append(Finding("Tokenizer", text))
    return said if len(said) == 1 else []


def _replacement(findings: Findings) -> list[Finding]:
    said = []
    for test in findings.of("replacement"):
        rows = test.results["rows"]
        none = next((row for row in rows if row["method"] is None), None)
        by_k: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["method"]:
                by_k[row["n_clusters"]].append(row)
        for n_clusters, group in sorted(by_k.items(), reverse=True):
            said.append(Finding("Replacement", _replacement_at(n_clusters, group, none)))
    return said


def _replacement_at(n_clusters: int, rows: list[dict[str, Any]], none: dict[str, Any] | None) -> str:
    ranked = _ranked([Score(method_name(r["method"]), r["psnr_db"], r.get("psnr_db_sd")) for r in rows], highest=True)
    costs = listing([f"to {number(s.value)} dB with {s.name}" for s in ranked])
    start = f" from {number(none['psnr_db'])} dB" if none else ""
    said = [
        f"With each token a random one of its cluster, {count(n_clusters)} clusters, PSNR falls{start} {costs}.",
        _lead(ranked, lambda gap: f"{number(gap)} dB", _TOKENS),
    ]
    for name in score_names(rows, "FD"):
        scores = [Score(method_name(r["method"]), r[name], r.get(f"{name}_sd")) for r in rows if name in r]
        before = none.get(name) if none else None
        said.append(_values(name, _ranked(scores), score, before, "without replacement"))
        said.append(_lead(_ranked(scores), _distance_gap(scores), _TOKENS))
    return " ".join(filter(None, said))


def _likelihood(names: Names) -> list[Finding]:
    models = names.findings.of("checkpoint")
    ranked = _ranked(_scores_of(names, models, "heldout_nats_per_token"))
    if len(ranked) < 2:
        return []
    values = listing([f"{s.name} {number(s.value, 3, s.sd)}" for s in ranked])
    text = f"Nats per token on held-out images, lower is better: {values}."
    if len({m.results.get("objective") for m in models} - {"refine"}) > 1 and any(
        m.results.get("objective") == "cluster" for m in models
    ):
        text += (
            " Models of clusters are charged for leaving the token to chance, which favours all others; among "
            "themselves they compare."
        )
    return [Finding("Likelihood", text)]


def _generation(names: Names) -> list[Finding]:
    evaluations = names.findings.of("evaluation")
    said = [finding for group in that_compare(evaluations, ("features",)) for finding in _consistency(names, group)]
    groups = that_compare(evaluations)
    for group in groups:
        said += _distances(names, group, _terms(group[0]) if len(groups) > 1 else "")
    recipes = names.groups(evaluations)
    if len(recipes) > 1:
        said.append(Finding("How sure", _caveat(names, recipes)))
    return said


def _terms(evaluation: Manifest) -> str:
    """What a distance is between, where that is not the same for all."""
    return f" of {count(evaluation.results.get('n_samples'))} samples to {judged_by(evaluation.results)}"


def _consistency(names: Names, evaluations: list[Manifest]) -> Iterator[Finding]:
    ranked = _ranked(_scores_of(names, evaluations, "class_consistency"), highest=True)
    if ranked:
        real = _real(evaluations, "class_consistency")
        text = _values("Images that the judge takes for the class asked for", ranked, percent, real, _REAL)
        lead = _lead(ranked, lambda gap: f"{100 * gap:.1f} points", _IMAGES)
        yield Finding("Class consistency", f"{text} {lead}".strip())


def _distances(names: Names, evaluations: list[Manifest], terms: str) -> Iterator[Finding]:
    for name in score_names([manifest.results for manifest in evaluations], "FD"):
        ranked = _ranked(_scores_of(names, evaluations, name))
        real = _real([m for m in evaluations if real_compares(m.results)], name)
        text = _values(f"{name}{terms}, lower is better", ranked, score, real, _REAL)
        yield Finding("Fréchet distance", f"{text} {_lead(ranked, _distance_gap(ranked), _IMAGES)}".strip())


def _values(
    title: str, ranked: Sequence[Score], show: Callable[[float], str], compared: float | None, with_what: str
) -> str:
    values = listing([f"{s.name} {show(s.value)}{f' ± {show(s.sd)}' if s.several and s.sd else ''}" for s in ranked])
    return f"{title}: {values}" + (f" ({with_what}: {show(compared)})." if compared is not None else ".")


def _lead(ranked: Sequence[Score], show: Callable[[float], str], cause: str) -> str:
    """Who leads by how much, and whether that is more than chance explains; nothing where there is no second."""
    if len(ranked) < 2:
        return ""
    first, second = ranked[:2]
    gap = abs(first.value - second.value)
    if first.sd is None or second.sd is None:
        return f"{_capital(first.name)} leads by {show(gap)}; the spread is not known."
    if gap > CLEAR * sqrt(first.sd**2 + second.sd**2):
        return f"{_capital(first.name)} leads by {show(gap)}, more than {cause} explains."
    return f"{_capital(first.name)} and {second.name} differ by {show(gap)}, no more than {cause} explains."


def _distance_gap(scores: Sequence[Score]) -> Callable[[float], str]:
    """Shows a difference with the digits of what it is between."""
    digits = 2 if max(s.value for s in scores) >= 1 else 3
    return lambda gap: number(gap, digits)


def _capital(name: str) -> str:
    return name if name.startswith("k-") else name[:1].upper() + name[1:]


def _caveat(names: Names, groups: dict[str, list[Manifest]]) -> str:
    """How many trainings stand behind each score."""

    def trained(manifest: Manifest) -> Path:
        return (names.findings.model_of(manifest) or manifest).folder

    fewest = min(len(set(map(trained, group))) for group in groups.values())
    if fewest > 1:
        return f"Each score is the mean over {fewest} or more trained models, ± their spread."
    return (
        "Models were trained once, and another seed moves such scores too, often by more than another draw of the "
        "images does: take the order as a lead, not as a result."
    )


def _scores_of(names: Names, manifests: list[Manifest], key: str) -> list[Score]:
    """A score of each group of models that differ in their seeds alone: the mean and the spread, or the only one's."""
    scores = []
    for name, group in names.groups([m for m in manifests if m.results.get(key) is not None]).items():
        values = [manifest.results[key] for manifest in group]
        if len(values) > 1:
            scores.append(Score(name, float(np.mean(values)), float(np.std(values, ddof=1)), several=True))
        else:
            scores.append(Score(name, values[0], _own_sd(group[0].results, key)))
    return scores


def _own_sd(results: dict[str, Any], name: str) -> float | None:
    """The spread of a single model's score over other draws of its images: the bootstrap's, or that of a share."""
    if name == "class_consistency" and results.get("n_samples"):
        share = results[name]
        return sqrt(share * (1 - share) / results["n_samples"])
    sd: float | None = results.get(f"{name}_sd")
    return sd


def _real(evaluations: list[Manifest], name: str) -> float | None:
    found = {m.results.get(f"real_{name}") for m in evaluations}
    values = [value for value in found if value is not None]
    return values[0] if len(values) == 1 else None


def _ranked(scores: Sequence[Score], *, highest: bool = False) -> list[Score]:
    """Best first."""
    return sorted(scores, key=lambda score: score.value, reverse=highest)
