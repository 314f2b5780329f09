import numpy as np
import pytest
import torch

from codeprior.losses import cross_entropy_nats, token_nats


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))


def test_cross_entropy_is_the_mean_negative_log_probability(logits):
    targets = torch.tensor([[0, 1, 2], [3, 0, 1]])
    probs = logits.double().softmax(-1).numpy()
    expected = -np.mean([np.log(probs[b, t, targets[b, t]]) for b in range(2) for t in range(3)])
    assert float(cross_entropy_nats(logits, targets)) == pytest.approx(expected, rel=1e-6)


def test_token_nats_is_the_likelihood_of_tokens_under_a_uniform_pick(logits):
    token_to_cluster = torch.tensor([0, 0, 0, 1, 2, 2, 3])
    sizes = torch.bincount(token_to_cluster)
    p_token = (logits.softmax(-1) / sizes)[..., token_to_cluster]  # over the 7 tokens
    torch.testing.assert_close(p_token.sum(-1), torch.ones(2, 3))
    tokens = torch.tensor([[0, 3, 5], [6, 1, 4]])
    expected = -p_token.gather(-1, tokens[..., None]).log().mean()
    nats = token_nats(logits, token_to_cluster[tokens], sizes.float().log())
    torch.testing.assert_close(nats, expected)


def test_clusters_of_one_are_tokens(logits):
    targets = torch.tensor([[0, 1, 2], [3, 0, 1]])
    assert token_nats(logits, targets, torch.zeros(4)) == cross_entropy_nats(logits, targets)
