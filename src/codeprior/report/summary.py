"""What came out, in plain words made from the numbers, whichever way they fall."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from codeprior.artifact import Manifest
from codeprior.report.format import count, duration, listing, number, percent
from codeprior.report.gather import Findings, method_name, read_meta
from codeprior.report.tables import score_names

CLEAR = 2.0  # standard deviations of a difference, below which it is called none


@dataclass(frozen=True)
class Score:
    """A method's score with the spread that is known of it."""

    name: str
    value: float
    sd: float | None = None


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


def sentences(findings: Findings) -> list[str]:
    """The findings: tokenizer, replacement, likelihood, generation, and how far to trust them."""
    said = [*_tokenizer(findings), *_replacement(findings), *_likelihood(findings), *_generation(findings)]
    return [sentence for sentence in said if sentence]


def _tokenizer(findings: Findings) -> list[str]:
    said = []
    for manifest in findings.of("tokenizer"):
        r = manifest.results
        if r.get("codes_used") is None or r.get("train_psnr_db") is None:
            continue
        used = "all" if r["codes_used"] == r["codebook_size"] else f"{count(r['codes_used'])}"
        said.append(
            f"The tokenizer rebuilds its training images at {number(r['train_psnr_db'], 1)} dB and uses {used} of its "
            f"{count(r['codebook_size'])} codes."
        )
    return said if len(said) == 1 else []


def _replacement(findings: Findings) -> list[str]:
    said = []
    for test in findings.of("replacement"):
        rows = test.results["rows"]
        none = next((row for row in rows if row["method"] is None), None)
        by_k: dict[int, list[dict[str, Any]]] = defaultdict(list)
        for row in rows:
            if row["method"]:
                by_k[row["n_clusters"]].append(row)
        for n_clusters, group in sorted(by_k.items(), reverse=True):
            said.append(_replacement_at(n_clusters, group, none))
    return said


def _replacement_at(n_clusters: int, rows: list[dict[str, Any]], none: dict[str, Any] | None) -> str:
    scores = _ranked([Score(method_name(r["method"]), r["psnr_db"], r.get("psnr_db_sd")) for r in rows], best=max)
    costs = listing([f"to {number(s.value)} dB with {s.name}" for s in scores])
    before = f" from {number(none['psnr_db'])} dB" if none else ""
    text = f"Replacing every token by a random one of its cluster lowers PSNR{before} {costs} ({n_clusters} clusters)."
    if len(scores) > 1:
        text += " " + _lead(scores, " dB", 2, "the choice of the random tokens")
    for name in score_names(rows, "FD"):
        pairs = [Score(method_name(r["method"]), r[name], r.get(f"{name}_sd")) for r in rows if name in r]
        if len(pairs) > 1:
            ranked = _ranked(pairs, best=min)
            values = listing([f"{s.name} {number(s.value)}" for s in ranked])
            text += f" In {name} the order is {'the same' if _same(scores, ranked) else 'another'}: {values}."
    return text


def _likelihood(findings: Findings) -> list[str]:
    models = [m for m in findings.of("checkpoint") if m.results.get("heldout_nats_per_token") is not None]
    grouped = _grouped([(_family(m), m.results["heldout_nats_per_token"]) for m in models])
    if len(grouped) < 2:
        return []
    ranked = _ranked(grouped, best=min)
    values = listing([f"{s.name} {number(s.value, 3)}{_spread(s, 3)}" for s in ranked])
    text = f"Held-out nats per token, lower is better: {values}."
    if {m.results.get("objective") for m in models} == {"token", "cluster"}:
        text += (
            " Models of clusters are charged for leaving the token to chance, so this favours plain tokens; among "
            "themselves they compare."
        )
    return [text]


def _generation(findings: Findings) -> list[str]:
    evaluations = findings.of("evaluation")
    said, leaders = [], {}
    consistent = _scores_of(findings, evaluations, "class_consistency")
    if consistent:
        ranked = _ranked(consistent, best=max)
        leaders["class consistency"] = ranked
        real = _real(evaluations, "class_consistency")
        values = listing([f"{s.name} {percent(s.value)}" for s in ranked])
        said.append(
            f"Share of generated images that the judge takes for the class asked for: {values}"
            + (f"; of real images {percent(real)}." if real is not None else ".")
        )
    for name in score_names([m.results for m in evaluations], "FD"):
        ranked = _ranked(_scores_of(findings, evaluations, name), best=min)
        leaders[name] = ranked
        real = _real(evaluations, name)
        values = listing([f"{s.name} {number(s.value)}" for s in ranked])
        said.append(
            f"{name}, lower is better: {values}"
            + (f"; real images in their place score {number(real)}." if real is not None else ".")
        )
    if any(len(ranked) > 1 for ranked in leaders.values()):
        said.append(_verdict(leaders) + " " + _caveat(evaluations, findings))
    return said


def _verdict(leaders: dict[str, list[Score]]) -> str:
    leads = [_lead_in(name, ranked) for name, ranked in leaders.items() if len(ranked) > 1]
    return f"{'; '.join(leads)}."


def _lead_in(name: str, ranked: Sequence[Score]) -> str:
    first, second = ranked[:2]
    clear = _clear(first, second)
    how = {True: "clearly ahead of", False: "level with", None: "ahead of"}[clear]
    return f"In {name} {first.name} is {how} {second.name}"


def _lead(ranked: Sequence[Score], unit: str, digits: int, cause: str) -> str:
    """Who leads, by how much, and whether that is more than chance explains."""
    first, second = ranked[:2]
    gap, clear = abs(first.value - second.value), _clear(first, second)
    if clear is False:
        return (
            f"The {number(gap, digits)}{unit} between {first.name} and {second.name} are within what {cause} explains."
        )
    more = f", more than {cause} explains" if clear else ""
    return f"{first.name} leads by {number(gap, digits)}{unit}{more}."


def _clear(first: Score, second: Score) -> bool | None:
    """Whether two scores differ by more than their spreads explain; None where no spread is known."""
    if first.sd is None or second.sd is None:
        return None
    return abs(first.value - second.value) > CLEAR * sqrt(first.sd**2 + second.sd**2)


def _caveat(evaluations: list[Manifest], findings: Findings) -> str:
    """How many trainings stand behind each score."""
    trained = defaultdict(set)
    for manifest in evaluations:
        trained[_family_of(findings, manifest)].add(findings.model_label(manifest))
    fewest = min(len(labels) for labels in trained.values())
    if fewest > 1:
        return f"Each is the mean over at least {fewest} trained models; ± is their spread."
    return "Each model was trained once, and another seed may well change the order: take it as a lead, not a result."


def _scores_of(findings: Findings, evaluations: list[Manifest], name: str) -> list[Score]:
    """A score of each method; of several models of one method the mean and the spread."""
    values = [(m, m.results[name]) for m in evaluations if m.results.get(name) is not None]
    grouped = _grouped([(_family_of(findings, m), value) for m, value in values])
    if len(grouped) < len(values):
        return grouped
    return [Score(_family_of(findings, m), value, _own_sd(m.results, name)) for m, value in values]


def _own_sd(results: dict[str, Any], name: str) -> float | None:
    """The spread of a single model's score over other draws of its images: the bootstrap's, or that of a share."""
    if name == "class_consistency" and results.get("n_samples"):
        share = results[name]
        return sqrt(share * (1 - share) / results["n_samples"])
    sd: float | None = results.get(f"{name}_sd")
    return sd


def _grouped(values: Sequence[tuple[str, float]]) -> list[Score]:
    groups: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        groups[name].append(value)
    return [
        Score(name, float(np.mean(group)), float(np.std(group, ddof=1)) if len(group) > 1 else None)
        for name, group in groups.items()
    ]


def _family(model: Manifest) -> str:
    return "plain tokens" if model.results.get("objective") == "token" else method_name(model.results.get("method"))


def _family_of(findings: Findings, manifest: Manifest) -> str:
    model = findings.model_of(manifest)
    return _family(model) if model else findings.place(manifest.folder)


def _real(evaluations: list[Manifest], name: str) -> float | None:
    found = {m.results.get(f"real_{name}") for m in evaluations}
    values = [value for value in found if value is not None]
    return values[0] if len(values) == 1 else None


def _ranked(scores: Sequence[Score], best: Any) -> list[Score]:
    return sorted(scores, key=lambda score: score.value, reverse=best is max)


def _same(a: Sequence[Score], b: Sequence[Score]) -> bool:
    return [score.name for score in a] == [score.name for score in b]


def _spread(score: Score, digits: int) -> str:
    return "" if score.sd is None else f" ± {number(score.sd, digits)}"
