"""The verb `extract`: a codebook in, a prior out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from codeprior.artifact import digest_array
from codeprior.clustering.methods import cluster, resolve_n_clusters
from codeprior.codebook import Codebook
from codeprior.config import ExtractConfig
from codeprior.errors import InputError
from codeprior.prior import CodebookPrior


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Cluster a codebook and write the prior; nothing to do if the file holds just this prior already.

    Raises
    ------
    InputError
        If the codebook or the counts cannot be read, do not fit, or `--output` holds another prior.
    """
    if config.output.suffix != ".safetensors":
        raise InputError(
            f"a prior is a .safetensors file, got --output {config.output}; name it e.g. prior.safetensors"
        )
    codebook = Codebook.load(config.codebook, normalize=config.normalize)
    usage = None if config.usage is None else _read_usage(config.usage, codebook)
    parameters = _parameters(config, codebook, usage)
    prior = _existing(config, codebook, parameters)
    if prior is None:
        found = cluster(
            codebook.space,
            parameters["n_clusters"],
            method=config.method,
            seed=config.seed,
            usage=usage,
            max_cluster_size=config.max_cluster_size,
            strict=config.strict,
            complete_tree=config.tree,
            device=_clustering_device(config.device),
        )
        prior = CodebookPrior(
            token_to_cluster=found.labels,
            codebook_digest=codebook.digest,
            method=config.method,
            linkage=found.linkage,
            usage=usage,
            seed=config.seed,
            parameters=parameters,
        )
        prior.save(config.output)
    return {"output": str(config.output), **describe(prior), "warnings": _warnings(prior, parameters["n_clusters"])}


def describe(prior: CodebookPrior) -> dict[str, Any]:
    """What people ask of a prior first."""
    sizes = prior.sizes
    return {
        "method": prior.method,
        "n_codes": len(prior),
        "n_clusters": prior.n_clusters,
        "largest_cluster": int(sizes.max()),
        "median_cluster": float(np.median(sizes)),
        "singletons": int((sizes == 1).sum()),
        "dead_codes": int((~prior.live).sum()),
        "normalized": bool(prior.parameters.get("normalize", False)),
        "codebook_digest": prior.codebook_digest,
        "digest": prior.digest,
    }


def _clustering_device(device: str) -> str:
    """`auto` stays on the CPU, where clustering takes seconds and torch need not be loaded."""
    return "cpu" if device == "auto" else device


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
    prior = CodebookPrior.load(config.output)
    wanted = (codebook.digest, config.method, config.seed, parameters)
    if (prior.codebook_digest, prior.method, prior.seed, dict(prior.parameters)) == wanted:
        return prior
    if config.overwrite:
        return None
    raise InputError(f"{config.output} holds another prior; choose another --output, or replace it with --overwrite")


def _read_usage(path: Path, codebook: Codebook) -> np.ndarray:
    if path.is_dir():
        from codeprior.codes import CodeStore

        store = CodeStore.open(path)
        if store.codebook_digest != codebook.digest:
            raise InputError(f"the codes at {path} belong to another codebook; encode them with this tokenizer")
        return store.usage()
    if not path.exists():
        raise InputError(f"no usage counts at {path}: give a .npy of one count a code, or a code store")
    try:
        counts = np.load(path, allow_pickle=False)
    except (ValueError, OSError) as error:
        raise InputError(f"cannot read {path}: {error}; is it a complete .npy file?") from None
    if counts.shape != (len(codebook),) or counts.dtype.kind not in "iu":
        raise InputError(f"{path} must hold {len(codebook)} integers, one a code; got {counts.dtype} {counts.shape}")
    return counts.astype(np.int64)


def _warnings(prior: CodebookPrior, wanted: int) -> list[str]:
    found = []
    if prior.n_clusters != wanted:
        found.append(f"the size limit stopped the merges at {prior.n_clusters} clusters, {wanted} were asked for")
    if n_dead := int((~prior.live).sum()):
        found.append(f"{n_dead} of {len(prior)} codes are never used: attached to clusters, never picked at decoding")
    return found
