"""The verb `inspect`: what an artifact holds, in numbers and in a picture."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import Manifest, is_artifact, read_manifest, short
from codeprior.clustering.curve import Curve, agreement, tree_curve, with_mean_distances
from codeprior.clustering.distance import duplicate_groups, squared_distances
from codeprior.codebook import Codebook
from codeprior.config import InspectConfig
from codeprior.errors import InputError
from codeprior.extract import describe, kept_counts
from codeprior.hub import is_on_hub
from codeprior.own import is_own
from codeprior.prior import CodebookPrior, is_prior_file
from codeprior.progress import Meter

_SAMPLE = 2048  # codes whose nearest neighbour is sought
_BLOCK = 2048  # codes whose distances to these are held at a time
_NEIGHBOURS = 10
_ALL_PAIRS = 32_768  # codes whose distances are all looked at: a few seconds
_BRIEF = ("kind", "n_codes", "method", "n_clusters", "largest_cluster", "singletons", "dead_codes", "time_s")

Artifact = CodebookPrior | Codebook | Manifest


def inspect(config: InspectConfig) -> dict[str, Any]:
    """Describe artifacts; several priors of one codebook are compared with the first.

    Raises
    ------
    InputError
        If a path holds no artifact, or a code or a picture is asked for that these artifacts cannot give.
    """
    if not config.paths:
        raise InputError("give at least one artifact: a prior, a codebook or a folder of codeprior")
    artifacts = {path: open_artifact(path, config) for path in config.paths}
    priors = {path: found for path, found in artifacts.items() if isinstance(found, CodebookPrior)}
    codebooks = [found for path in artifacts for found in _codebook_of(path, artifacts[path])]
    result = _describe_all(artifacts)
    curves = {path: _curve(prior, codebooks) for path, prior in priors.items()}
    if priors:
        result |= _curve_rows(next(iter(priors.values())), next(iter(curves.values()))) | _agreement_rows(priors)
    if config.code is not None:
        result |= _around(config.code, list(priors.values()), codebooks)
    if config.plot is not None:
        result["output"] = str(_draw(priors, curves, config.plot))
    return result


def open_artifact(path: Path, config: InspectConfig) -> Artifact:
    """A prior, a manifest or a codebook, by what the path holds; of a codebook, as the settings say."""
    if not (is_on_hub(path) or is_own(path) or path.exists()):
        raise InputError(f"nothing at {path}: there is no such file or folder")
    if is_prior_file(path):
        return CodebookPrior.load(path)
    if is_artifact(path):
        manifest = read_manifest(path)
        return CodebookPrior.load(path) if manifest.kind == CodebookPrior.kind else manifest
    return Codebook.load(path, normalize=config.normalize, family=config.family, key=config.key)


def _describe_all(artifacts: dict[Path, Artifact]) -> dict[str, Any]:
    if len(artifacts) == 1:
        path, artifact = next(iter(artifacts.items()))
        return {"path": str(path), **_describe(path, artifact)}
    rows = []
    for path, artifact in artifacts.items():
        whole = _describe(path, artifact)
        brief = {name: whole[name] for name in _BRIEF if name in whole}
        rows.append({"path": str(path), **brief, "digest": short(whole["digest"])})
    return {"artifacts": rows}


def _describe(path: Path, artifact: Artifact) -> dict[str, Any]:
    if isinstance(artifact, CodebookPrior):
        return {"kind": "prior", **describe(artifact)}
    if isinstance(artifact, Manifest):
        return {
            "kind": artifact.kind,
            "created": artifact.created,
            "time_s": artifact.time_s,
            **artifact.results,
            "digest": artifact.digest,
        }
    return {"kind": "codebook", **describe_codebook(artifact, kept_counts(path, artifact))}


def describe_codebook(codebook: Codebook, counts: np.ndarray | None = None) -> dict[str, Any]:
    """Size, lengths, copies, unused codes and density of a codebook, in the space in which it is clustered.

    Nearest distances are taken of every code, or of 2,048 evenly spaced ones where there are more. "Untouched" codes
    lie where training starts them; "dead" ones were never used, by `counts` (V,) where these are known.
    """
    space = codebook.space
    norms = np.linalg.norm(codebook.vectors, axis=1)
    chosen = np.unique(np.linspace(0, len(space) - 1, min(_SAMPLE, len(space))).astype(np.int64))
    nearest = _nearest(space, chosen)
    low, middle, high = np.quantile(nearest, [0.05, 0.5, 0.95]) if len(space) > 1 else (np.nan,) * 3
    return {
        "n_codes": len(codebook),
        "dim": codebook.vectors.shape[1],
        "normalized": codebook.normalize,
        "norm_min": float(norms.min()),
        "norm_median": float(np.median(norms)),
        "norm_max": float(norms.max()),
        "duplicates": len(space) - len(np.unique(duplicate_groups(space))),
        "untouched_codes": codebook.n_untouched,
        **({} if counts is None else {"dead_codes": int(np.count_nonzero(counts == 0))}),
        "nearest_distance_5%": float(low),
        "nearest_distance_median": float(middle),
        "nearest_distance_95%": float(high),
        "digest": codebook.digest,
    }


def _nearest(space: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Distance of each chosen code to the nearest other one: (C,), infinite where there is no other."""
    nearest = np.full(len(chosen), np.inf)
    for start in range(0, len(space), _BLOCK):
        sqdist = squared_distances(space[chosen], space[start : start + _BLOCK])
        own = (chosen >= start) & (chosen < start + _BLOCK)
        sqdist[own, chosen[own] - start] = np.inf
        nearest = np.minimum(nearest, sqdist.min(axis=1))
    return np.sqrt(nearest)


def _distances(space: np.ndarray, code: int) -> np.ndarray:
    """Distances from one code to all others: (V - 1,)."""
    return np.sqrt(np.delete(squared_distances(space[code : code + 1], space)[0], code))


def _codebook_of(path: Path, artifact: Artifact) -> list[Codebook]:
    if isinstance(artifact, Codebook):
        return [artifact]
    return [Codebook.load(path)] if isinstance(artifact, Manifest) and artifact.kind == "tokenizer" else []


def _curve_rows(prior: CodebookPrior, curve: Curve | None) -> dict[str, Any]:
    """The curve over k of the prior's tree, at its own k and at every power of two."""
    if curve is None:
        return {}
    wanted = {prior.n_clusters, *(2**power for power in range(32))}
    rows = [curve.at(k) for k in sorted(wanted) if curve.n_clusters[0] <= k <= curve.n_clusters[-1]]
    result: dict[str, Any] = {"curve": rows}
    if not prior.live.all():
        result["curve_of"] = "live codes, without the dead ones that are attached to their clusters"
    if curve.mean_distance is None:
        without = f"mean distances, which the heights of {prior.method} do not tell"
        few = prior.live.sum() <= _ALL_PAIRS
        result["curve_without"] = f"{without}: give the codebook too" if few else without
    return result


def _curve(prior: CodebookPrior, codebooks: list[Codebook]) -> Curve | None:
    """The curve over k, of a prior with a tree; mean distances of others than average linkage need the codebook."""
    if prior.linkage is None:
        return None
    n_codes = int(prior.live.sum())
    usage = None if prior.usage is None else prior.usage[prior.live]
    Z, average = prior.linkage, prior.method == "dcpe"
    codebook = next((found for found in codebooks if found.digest == prior.codebook_digest), None)
    if not average and codebook is not None and n_codes <= _ALL_PAIRS:
        meter = Meter()
        Z, average = with_mean_distances(Z, _space(codebook, prior)[prior.live], meter), True
        meter.close()
    return tree_curve(Z, n_codes, usage=usage, average=average)


def _space(codebook: Codebook, prior: CodebookPrior) -> np.ndarray:
    """The vectors in the space that a prior was made in."""
    return replace(codebook, normalize=prior.parameters.get("normalize", codebook.normalize)).space


def _agreement_rows(priors: dict[Path, CodebookPrior]) -> dict[str, Any]:
    (path, first), *others = priors.items()
    rows = []
    for other_path, other in others:
        first.verify(other.codebook_digest, str(other_path))
        rows.append(
            {
                "prior": str(other_path),
                "with": str(path),
                **asdict(agreement(first.token_to_cluster, other.token_to_cluster)),
            }
        )
    return {"agreement": rows} if rows else {}


def _around(code: int, priors: list[CodebookPrior], codebooks: list[Codebook]) -> dict[str, Any]:
    """The cluster mates of a code by each prior, and its nearest neighbours where a codebook is at hand."""
    if not (priors or codebooks):
        raise InputError("--code needs a prior or a codebook among the artifacts")
    n_codes = len(priors[0] if priors else codebooks[0])
    if not 0 <= code < n_codes:
        raise InputError(f"--code must be between 0 and {n_codes - 1}, got {code}")
    result: dict[str, Any] = {}
    if priors:
        labels = priors[0].token_to_cluster
        mates = np.flatnonzero(labels == labels[code])
        result = {"cluster": int(labels[code]), "cluster_members": " ".join(map(str, mates[:32]))}
    if codebooks:
        codebook = codebooks[0]
        if priors:
            priors[0].verify(codebook.digest, "this codebook")
        others = np.delete(np.arange(n_codes), code)
        distances = _distances(_space(codebook, priors[0]) if priors else codebook.space, code)
        order = np.argsort(distances, kind="stable")[:_NEIGHBOURS]
        result["neighbours"] = [
            {"code": int(others[i]), "distance": float(distances[i])}
            | ({"same_cluster": bool(priors[0].token_to_cluster[others[i]] == result["cluster"])} if priors else {})
            for i in order
        ]
    return result


def _draw(priors: dict[Path, CodebookPrior], curves: dict[Path, Curve | None], folder: Path) -> Path:
    """Pictures of the sizes of all priors, and of the tree of the first and the curves of all that have one."""
    if not priors:
        raise InputError("--plot needs a prior among the artifacts; make one with `codeprior extract`")
    from codeprior import plots

    names = {path: path.stem if [p.stem for p in priors].count(path.stem) == 1 else str(path) for path in priors}
    plots.cluster_sizes({names[path]: prior.token_to_cluster for path, prior in priors.items()}, folder / "sizes.png")
    first = next(iter(priors.values()))
    if first.linkage is not None and len(first.linkage) == first.live.sum() - 1 > 0 and first.method != "centroid":
        height = "mean distance at the merge" if first.method == "dcpe" else "height of the merge"
        plots.dendrogram(first.linkage, folder / "dendrogram.png", n_clusters=first.n_clusters, ylabel=height)
    if any(curve is not None for curve in curves.values()):
        named = {names[path]: curve for path, curve in curves.items()}
        plots.curves_over_k(named, folder / "curve.png", n_clusters=first.n_clusters)
    return folder
