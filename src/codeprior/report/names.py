"""What methods, models, samples and scores are called in the report, and their colours: the same everywhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path

from codeprior.artifact import Manifest, digest_json
from codeprior.plots import PALETTE
from codeprior.report.gather import Findings

METHODS = {
    "dcpe": "DCPE",
    "kmeans": "k-means",
    "kmeans++": "k-means++",
    "kmeans++-weighted": "k-means++ by usage",
    "balanced-kmeans": "balanced k-means",
    "kmeans-instance": "k-means by instances",
    "centroid": "centroid linkage",
    "rearrangement": "given rearrangement",
    "ward": "Ward linkage",
    "complete": "complete linkage",
}
TOKENS = "token"  # the method of a model that predicts plain tokens
USES = {  # what else than predicting its clusters is done with a method: a word before it, and how that is written
    "refined": "{} + refine",
    "iar": "IAR + {}",
    "factorised": "factorised + {}",
    "refine": "second stage of {}",
}


def method_name(method: str | None) -> str:
    """A clustering method as people write it, with what is done with it if a word of `USES` is before it."""
    use, _, clusters = (method or "").partition(" ")
    if clusters:
        return USES[use].format(method_name(clusters))
    return "plain tokens" if method == TOKENS else METHODS.get(method or "", method or "none")


class Names:
    """Labels and colours of what was found.

    A model is called by its method, and by its place too where two have the same; so are its samples and their
    scores, by the place of the samples where one model made several.
    """

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        methods = {file.prior.method for file in findings.priors}
        users = [*findings.of("checkpoint"), *findings.of("samples"), *findings.of("likelihood")]
        methods |= {self.method(user) for user in users} - {TOKENS, ""}
        self.methods = [*sorted(methods, key=_rank), TOKENS]
        """In the order of their colours: DCPE after what it is compared with, its uses, plain tokens last."""

    def method(self, manifest: Manifest) -> str:
        """The clustering method behind a checkpoint, samples or scores, after its use where it has one of `USES`;
        "token" for none, "" if unknown."""
        model = self.findings.model_of(manifest)
        if model is None:
            return ""
        use_of_model = manifest if manifest.kind == "likelihood" else self.findings.samples_of(manifest)
        refined = use_of_model is not None and "refine" in use_of_model.inputs
        use = "refined" if refined else model.results.get("objective")
        return (f"{use} " if use in USES else "") + (model.results.get("method") or TOKENS)

    def label(self, manifest: Manifest) -> str:
        """What a checkpoint, samples or scores are called."""
        model, samples = self.findings.model_of(manifest), self.findings.samples_of(manifest)
        if model is None:
            return self.findings.place(manifest.folder)
        name = _model_name(self.method(manifest))
        if samples is not None and self._samples_of_model[model.folder, self.method(samples)] > 1:
            return f"{name} ({self.findings.place(samples.folder)})"
        several = self._models_of_method[self.method(model)] > 1
        return f"{name} ({self.findings.place(model.folder)})" if several else name

    def method_color(self, method: str) -> str:
        """The colour of a method; none beyond the palette's."""
        rank = self.methods.index(method) if method in self.methods else len(PALETTE)
        return PALETTE[rank] if rank < len(PALETTE) else ""

    def color(self, manifest: Manifest) -> str:
        """The colour of a model, its samples and scores: its method's, or one of its own where methods have several."""
        model = self.findings.model_of(manifest)
        if model is None:
            return ""
        if max(self._models_of_method.values()) == 1:
            return self.method_color(self.method(manifest))
        rank = self.models.index(model)
        return PALETTE[rank] if rank < len(PALETTE) else ""

    @cached_property
    def models(self) -> list[Manifest]:
        """The checkpoints in the order of their colours."""
        return self._sorted(self.findings.of("checkpoint"), self.methods)

    def in_order(self, kind: str) -> list[Manifest]:
        """The artifacts of a kind as they are shown: plain tokens first, then by method and place."""
        return self._sorted(self.findings.of(kind), [TOKENS, *self.methods[:-1]])

    def groups(self, manifests: list[Manifest]) -> dict[str, list[Manifest]]:
        """Checkpoints or scores that differ in seeds alone, by name: the method's, where it has one such group."""
        by_recipe: dict[tuple[str, str], list[Manifest]] = defaultdict(list)
        for manifest in manifests:
            by_recipe[self.method(manifest), self._recipe(manifest)].append(manifest)
        recipes = Counter(method for method, _ in by_recipe)
        return {
            method_name(method) if method and recipes[method] == 1 else self.label(group[0]): group
            for (method, _), group in by_recipe.items()
        }

    def _recipe(self, manifest: Manifest) -> str:
        """How a model was trained and sampled from, but for the seeds."""
        model, samples = self.findings.model_of(manifest), self.findings.samples_of(manifest)
        if model is None:
            return str(manifest.folder)
        settings = [{**made.settings, "seed": None} for made in (model, samples) if made is not None]
        return digest_json([settings, model.results.get("vocab_size")])

    def _sorted(self, manifests: list[Manifest], methods: list[str]) -> list[Manifest]:
        def rank(manifest: Manifest) -> tuple[int, str]:
            method = self.method(manifest)
            return (methods.index(method) if method in methods else len(methods), self.findings.place(manifest.folder))

        return sorted(manifests, key=rank)

    @cached_property
    def _models_of_method(self) -> Counter[str]:
        return Counter(self.method(model) for model in self.findings.of("checkpoint"))

    @cached_property
    def _samples_of_model(self) -> Counter[tuple[Path, str]]:
        made = [(self.findings.model_of(samples), self.method(samples)) for samples in self.findings.of("samples")]
        return Counter((model.folder, method) for model, method in made if model)


def _rank(method: str) -> tuple[int, bool, str]:
    """Methods themselves come before what is done with them, and DCPE after what it is compared with."""
    use, _, clusters = method.rpartition(" ")
    return ["", *USES].index(use), clusters == "dcpe", clusters


def _model_name(method: str) -> str:
    return method_name(method) if method == TOKENS or " " in method else f"{method_name(method)} clusters"
