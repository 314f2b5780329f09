"""The verb `extract`: a codebook in, a prior out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import digest_array, is_artifact, write_atomically
from codeprior.clustering.balanced import balanced_order
from codeprior.clustering.compilation import compilation_told
from codeprior.clustering.curve import agreement, induced_entropy, size_statistics, within_cluster_distance
from codeprior.clustering.methods import METHODS, cluster, resolve_n_clusters
from codeprior.codebook import Codebook, read_counts
from codeprior.config import ExtractConfig
from codeprior.errors import InputError
from codeprior.prior import CodebookPrior
from codeprior.progress import Meter, announce
from codeprior.rearrangement import clusters_of, read_mapping, write_mapping
from codeprior.weights import is_checkpoint

COMPILING = "compiling the clustering, once on this machine: some ten seconds"
REARRANGEMENT = "rearrangement"  # the method of a prior that was given as IAR's mapping


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Cluster a codebook and write the prior; nothing to do if the file holds just this prior already.

    Raises
    ------
    InputError
        If the codebook or the counts cannot be read, do not fit, or `--output` holds another prior.
    """
    _check_flags(config)
    codebook = Codebook.load(config.codebook, normalize=config.normalize, family=config.family, key=config.key)
    _ = codebook.space  # asks at once if nothing tells it
    usage = None if config.usage is None else _read_usage(config.usage, codebook)
    parameters = _parameters(config, codebook, usage)
    mapping = None
    if config.mapping is not None:
        mapping = read_mapping(config.mapping)
        if len(mapping) != len(codebook):
            raise InputError(f"{config.mapping} is of {len(mapping)} codes, the codebook has {len(codebook)}")
        config = replace(config, method=REARRANGEMENT)
        parameters["mapping"] = digest_array(mapping)
    prior = _existing(config, codebook, parameters)
    if prior is None:
        if mapping is None:
            prior = _make(config, config.method, codebook, usage, parameters)
        else:
            prior = _given(mapping, codebook, usage, parameters)
        prior.save(config.output)
    _export(config, prior, codebook, mapping)
    warnings = _warnings(prior, parameters["n_clusters"], codebook, config.codebook)
    result = {"output": str(config.output), **_found(codebook), **describe(prior), "warnings": warnings}
    if config.compare:
        others = [_make(config, method, codebook, usage, parameters) for method in config.compare]
        result["comparison"] = [_compare(prior, other, codebook) for other in [prior, *others]]
    return result


def _found(codebook: Codebook) -> dict[str, Any]:
    """Which codebook of the checkpoint was clustered, and in what space."""
    origin = codebook.origin
    found = {
        "family": origin.family,
        "note": origin.note,
        "key": " / ".join(filter(None, (origin.wrapper, origin.key))),
        "space": codebook.space_name,
    }
    return {name: value for name, value in found.items() if value}


def describe(prior: CodebookPrior) -> dict[str, Any]:
    """What people ask of a prior first."""
    sizes = size_statistics(prior.token_to_cluster)
    return {
        "method": prior.method,
        "n_codes": len(prior),
        "n_clusters": prior.n_clusters,
        "largest_cluster": sizes.largest,
        "median_cluster": sizes.median,
        "singletons": sizes.singletons,
        "live_codes": int(prior.live.sum()),
        "dead_codes": int((~prior.live).sum()),
        "normalized": bool(prior.parameters.get("normalize", False)),
        "codebook_digest": prior.codebook_digest,
        "digest": prior.digest,
    }


def _make(
    config: ExtractConfig, method: str, codebook: Codebook, usage: np.ndarray | None, parameters: dict[str, Any]
) -> CodebookPrior:
    bounded = METHODS[method].size_bound
    meter = Meter()
    with compilation_told(lambda: announce(COMPILING)):
        found = cluster(
            codebook.space,
            parameters["n_clusters"],
            method=method,
            seed=config.seed,
            usage=usage,
            max_cluster_size=config.max_cluster_size if bounded or method == config.method else None,
            strict=config.strict,
            complete_tree=config.tree,
            device="cpu" if config.device == "auto" else config.device,  # seconds there, and torch need not be loaded
            progress=meter,
        )
    meter.close()
    return CodebookPrior(
        token_to_cluster=found.labels,
        codebook_digest=codebook.digest,
        method=method,
        linkage=found.linkage,
        usage=usage,
        seed=config.seed,
        parameters=parameters,
    )


def _given(
    mapping: np.ndarray, codebook: Codebook, usage: np.ndarray | None, parameters: dict[str, Any]
) -> CodebookPrior:
    labels = clusters_of(mapping, parameters["n_clusters"])
    return CodebookPrior(labels, codebook.digest, REARRANGEMENT, usage=usage, parameters=parameters)


def _check_flags(config: ExtractConfig) -> None:
    """Say before the work what would stop it, or the writing of its results, later."""
    if config.output.suffix != ".safetensors":
        raise InputError(f"a prior is a .safetensors file, got --output {config.output}; try prior.safetensors")
    for method in (config.method, *config.compare):
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if method == "kmeans++-weighted" and config.usage is None:
            raise InputError(f"{method} weighs each code by how often it is used; give --usage")
    if config.export_linkage is not None and (config.mapping is not None or not METHODS[config.method].tree):
        maker = "a mapping" if config.mapping is not None else config.method
        raise InputError(f"--export-linkage writes a tree, {maker} makes none; leave it out")
    if config.strict and config.max_cluster_size is None:
        raise InputError("--strict makes a bound of --max-cluster-size; give it too")


def _parameters(config: ExtractConfig, codebook: Codebook, usage: np.ndarray | None) -> dict[str, Any]:
    return {
        "n_clusters": resolve_n_clusters(config.n_clusters, len(codebook)),
        "normalize": codebook.normalize,
        "max_cluster_size": config.max_cluster_size,
        "strict": config.strict,
        "tree": config.tree,
        "usage": None if usage is None else digest_array(usage),
    }


def _existing(config: ExtractConfig, codebook: Codebook, parameters: dict[str, Any]) -> CodebookPrior | None:
    if not config.output.exists():
        return None
    try:
        prior = CodebookPrior.load(config.output)
    except InputError:
        if config.overwrite:
            return None
        raise
    wanted = (codebook.digest, config.method, config.seed, parameters)
    if (prior.codebook_digest, prior.method, prior.seed, dict(prior.parameters)) == wanted:
        return prior
    if config.overwrite:
        return None
    raise InputError(f"{config.output} holds another prior; choose another --output, or replace it with --overwrite")


def _read_usage(path: Path, codebook: Codebook) -> np.ndarray:
    if is_artifact(path):
        from codeprior.codes import CodeStore

        store = CodeStore.open(path)
        if store.codebook_digest != codebook.digest:
            raise InputError(f"the codes at {path} belong to another codebook; encode them with this tokenizer")
        return store.usage()
    counts = read_counts(path, codebook.origin.key)
    if counts.shape != (len(codebook),):
        raise InputError(f"{path} must hold {len(codebook)} counts, one a code; got shape {counts.shape}")
    return counts


def _export(config: ExtractConfig, prior: CodebookPrior, codebook: Codebook, given: np.ndarray | None) -> None:
    if config.export_labels is not None:
        _save_npy(config.export_labels, prior.token_to_cluster)
    if config.export_linkage is not None:
        assert prior.linkage is not None  # checked before
        _save_npy(config.export_linkage, prior.linkage)
    if config.export_mapping is not None:
        mapping = balanced_order(codebook.space, prior.token_to_cluster) if given is None else given
        write_mapping(config.export_mapping, mapping)


def _save_npy(path: Path, array: np.ndarray) -> None:
    with write_atomically(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def _compare(prior: CodebookPrior, other: CodebookPrior, codebook: Codebook) -> dict[str, Any]:
    """One row: how another method's clusters look beside the prior's."""
    sizes = size_statistics(other.token_to_cluster)
    entropy = {} if other.usage is None else {"entropy_nats": induced_entropy(other.token_to_cluster, other.usage)}
    agreed = agreement(prior.token_to_cluster, other.token_to_cluster)
    return {
        "method": other.method,
        "n_clusters": other.n_clusters,
        "largest": sizes.largest,
        "singletons": sizes.singletons,
        "mean_distance_within": within_cluster_distance(codebook.space, other.token_to_cluster),
        **entropy,
        "ari": agreed.ari,
        "nmi": agreed.nmi,
    }


def kept_counts(source: Path, codebook: Codebook) -> np.ndarray | None:
    """How often each code is used, (V,) int64, where the codebook's own checkpoint tells."""
    if not is_checkpoint(source) or is_artifact(source):
        return None
    try:
        counts = read_counts(source, codebook.origin.key)
    except InputError:  # it keeps none, or those of several codebooks
        return None
    return counts if counts.shape == (len(codebook),) else None


def _warnings(prior: CodebookPrior, wanted: int, codebook: Codebook, source: Path) -> list[str]:
    found = []
    if prior.n_clusters != wanted:
        found.append(f"the size limit stopped the merges at {prior.n_clusters} clusters, {wanted} were asked for")
    counts = None if prior.usage is not None else kept_counts(source, codebook)
    if counts is not None and not counts.all():
        found.append(
            f"{np.count_nonzero(counts == 0)} of {len(prior)} codes were never used, says the checkpoint: clustered "
            f"all the same; leave them out with --usage {source}"
        )
    elif prior.usage is None and (n_untouched := codebook.n_untouched):
        found.append(
            f"{n_untouched} of {len(prior)} codes lie where training starts them, within 1/{len(prior)} of the origin: "
            "probably never used, and merged first; leave them out with --usage"
        )
    if n_dead := int((~prior.live).sum()):
        found.append(f"{n_dead} of {len(prior)} codes are never used: attached to clusters, never picked at decoding")
    return found
