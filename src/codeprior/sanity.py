"""What can be said of a training run before its first step: floors, the first loss, the size; and what looks wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from codeprior.codes import unigram_entropy_nats
from codeprior.config import TrainConfig
from codeprior.objectives import Objective
from codeprior.prior import CodebookPrior

# The mean-logit loss is skewed where the largest cluster has this many times the mean number of codes.
SKEWED = 4
# A partition is degenerate where one cluster has more than this share of the codes, or of the tokens.
DEGENERATE = 0.5


def sanity(objective: Objective, usage: np.ndarray) -> dict[str, float]:
    """Numbers that a loss curve is read by.

    Parameters
    ----------
    objective : Objective
        Before its first step.
    usage : ndarray of shape (V,), int64
        How often each code occurs in the training codes.

    Returns
    -------
    numbers : dict
        `n_parameters`; `initial_nats`, the loss of a model that prefers nothing; `unigram_nats`, the entropy of the
        codes, which a model that knows their frequencies and no context reaches; with a prior its two parts,
        `cluster_unigram_nats` and `unigram_nats_given_clusters` (what is left of it where the cluster is known).
    """
    numbers = {
        "n_parameters": objective.model.n_parameters,
        "initial_nats": objective.initial_nats(usage),
        "unigram_nats": unigram_entropy_nats(usage),
    }
    if objective.prior is not None:
        clusters = unigram_entropy_nats(_cluster_usage(objective.prior, usage))
        numbers["cluster_unigram_nats"] = clusters
        numbers["unigram_nats_given_clusters"] = numbers["unigram_nats"] - clusters
    return numbers


def sentence(numbers: dict[str, Any]) -> str:
    """The numbers of `sanity` for people, one line."""
    parts = ""
    if "cluster_unigram_nats" in numbers:
        clusters, within = numbers["cluster_unigram_nats"], numbers["unigram_nats_given_clusters"]
        parts = f" ({clusters:.3f} of clusters and {within:.3f} within them)"
    return (
        f"{numbers['n_parameters']:,} parameters; unigram entropy {numbers['unigram_nats']:.3f} nats per token{parts}; "
        f"first loss about {numbers['initial_nats']:.3f}"
    )


def warnings(config: TrainConfig, prior: CodebookPrior | None, usage: np.ndarray) -> list[str]:
    """What looks wrong with a prior of these codes, a sentence each."""
    if prior is None:
        return []
    found = (_degenerate(prior, usage), _skewed(config, prior))
    return [warning for warning in found if warning is not None]


def _degenerate(prior: CodebookPrior, usage: np.ndarray) -> str | None:
    for what, counts in {"codes": prior.sizes, "training tokens": _cluster_usage(prior, usage)}.items():
        share = counts.max() / counts.sum()
        if prior.n_clusters > 1 and share > DEGENERATE:
            return (
                f"one of {prior.n_clusters} clusters has {share:.0%} of the {what}, so that it says little; take more "
                "clusters, or extract with --max-cluster-size"
            )
    return None


def _skewed(config: TrainConfig, prior: CodebookPrior) -> str | None:
    """A token's gradient through its cluster's mean logit is (p(cluster) - 1) / size: in the largest cluster it is as
    many times weaker as that one is larger, whereas log-sum-exp gives each member its own share of the probability."""
    if config.objective != "iar" or config.iar_form != "mean" or prior.sizes.max() < SKEWED * prior.sizes.mean():
        return None
    times = prior.sizes.max() / prior.sizes.mean()
    return (
        f"the largest cluster has {prior.sizes.max()} tokens, {times:.0f} times the mean: with --iar-form mean its "
        "tokens get a gradient as many times weaker; use logsumexp, or a prior made with --max-cluster-size"
    )


def _cluster_usage(prior: CodebookPrior, usage: np.ndarray) -> np.ndarray:
    """How often each cluster occurs, (G,)."""
    return np.bincount(prior.token_to_cluster, weights=usage)
