from pathlib import Path

import numpy as np
import pytest

from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.objectives import build
from codeprior.prior import CodebookPrior
from codeprior.sanity import sanity, sentence, warnings

DIGEST = "sha256:" + "0" * 64


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"codes": Path("codes"), "output": Path("output"), "device": "cpu", **changes})


def test_the_floors_are_the_entropies_of_codes_of_clusters_and_within_them(tiny):
    codes, prior = CodeStore.open(tiny / "codes"), CodebookPrior.load(tiny / "prior.safetensors")
    numbers = sanity(build(config(objective="factorised"), codes, prior), codes.usage())
    tokens = np.asarray(codes.codes).ravel()
    p = np.bincount(tokens, minlength=32) / tokens.size
    p_cluster = np.bincount(prior.token_to_cluster, weights=p)
    inside = p / p_cluster[prior.token_to_cluster]
    assert numbers["unigram_nats"] == pytest.approx(-sum(x * np.log(x) for x in p if x))
    assert numbers["cluster_unigram_nats"] == pytest.approx(-sum(x * np.log(x) for x in p_cluster if x))
    within = -sum(x * np.log(y) for x, y in zip(p, inside, strict=True) if x)
    assert numbers["unigram_nats_given_clusters"] == pytest.approx(within)
    said = sentence(numbers)
    assert f"{numbers['n_parameters']:,} parameters" in said
    assert f"{numbers['unigram_nats']:.3f} nats per token ({numbers['cluster_unigram_nats']:.3f} of clusters" in said


def test_skewed_clusters_are_named_where_their_mean_logit_is_trained():
    prior = CodebookPrior(np.array([0] * 20 + list(range(1, 40))), DIGEST, "dcpe")
    usage = np.ones(len(prior), dtype=int)
    [said] = warnings(config(objective="iar", iar_form="mean"), prior, usage)
    assert "20 tokens, 14 times the mean" in said
    assert warnings(config(objective="iar"), prior, usage) == []
    even = CodebookPrior(np.arange(40) // 4, DIGEST, "dcpe")
    assert warnings(config(objective="iar", iar_form="mean"), even, np.ones(40, dtype=int)) == []


def test_a_cluster_that_holds_most_codes_or_most_tokens_is_named():
    chained = CodebookPrior(np.array([0] * 30 + [1, 2, 3]), DIGEST, "dcpe")
    [said] = warnings(config(objective="cluster"), chained, np.ones(33, dtype=int))
    assert "one of 4 clusters has 91% of the codes" in said
    even = CodebookPrior(np.arange(8) // 2, DIGEST, "dcpe")
    [said] = warnings(config(objective="cluster"), even, np.array([5, 4, 1, 1, 1, 1, 1, 1]))
    assert "60% of the training tokens" in said
    assert warnings(config(), None, np.ones(8, dtype=int)) == []
