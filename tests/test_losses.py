import shutil
from functools import partial

import numpy as np
import pytest
import torch

import naive
from codeprior import losses
from codeprior.losses import (
    cluster_cross_entropy_nats,
    cluster_logits,
    cross_entropy_nats,
    factorised_log_probs,
    factorised_nats,
    iar_nats,
    member_nats,
    projected,
    token_nats,
)


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


FORMS = ("logsumexp", "mean", "logmeanexp")


def with_gradient(loss, *tensors):
    """The loss and its gradients with respect to the tensors, in the tensors' precision."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    nats = loss(*leaves)
    return nats.detach(), *torch.autograd.grad(nats, leaves)


@pytest.fixture(params=["unequal", "equal", "single"])
def token_to_cluster(request) -> torch.Tensor:
    labels = {"unequal": [0, 2, 2, 1, 2, 0, 2, 2, 3, 2, 1, 2], "equal": [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]}
    return torch.tensor(labels.get(request.param, list(range(12))))


@pytest.fixture
def problem() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(2, 5, 12, generator=generator)
    logits[0, 0, 3] = 200.0  # one that overflows where it is not subtracted
    return logits, torch.randint(12, (2, 5), generator=generator)


@pytest.mark.parametrize("form", FORMS)
def test_cluster_logits_equal_their_definition(problem, token_to_cluster, form):
    expected = naive.cluster_logits(problem[0].double().numpy(), token_to_cluster.numpy(), form)
    np.testing.assert_allclose(cluster_logits(problem[0], token_to_cluster, form), expected, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_iar_and_its_gradient_equal_their_definition(problem, token_to_cluster, form, weight, on_cpu, monkeypatch):
    logits, targets = problem
    monkeypatch.setattr(losses, "eager_on_cpu", lambda _: on_cpu)  # elsewhere it is made otherwise

    def definition(x):  # in float64, from cluster logits made one by one
        clusters = [x[..., token_to_cluster == c] for c in range(int(token_to_cluster.max()) + 1)]
        means = {"logsumexp": lambda c: c.logsumexp(-1), "mean": lambda c: c.mean(-1)}
        means["logmeanexp"] = lambda c: c.logsumexp(-1) - np.log(c.shape[-1])
        y = torch.stack([means[form](c) for c in clusters], dim=-1)
        token = -x.log_softmax(-1).gather(-1, targets[..., None]).mean()
        return token - weight * y.log_softmax(-1).gather(-1, token_to_cluster[targets][..., None]).mean()

    expected = with_gradient(definition, logits.double())
    given = with_gradient(lambda x: iar_nats(x, targets, token_to_cluster, weight=weight, form=form), logits)
    for one, other in zip(given, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def test_cluster_log_sum_exp_is_the_probability_of_the_cluster(problem, token_to_cluster):
    logits, targets = problem
    p = logits.double().softmax(-1)
    inside = token_to_cluster == token_to_cluster[targets][..., None]
    expected = -(p * inside).sum(-1).log().mean()
    nats = cluster_cross_entropy_nats(logits, targets, token_to_cluster)
    torch.testing.assert_close(nats.double(), expected, rtol=1e-5, atol=1e-6)


def test_equal_blocks_are_iars_own_reshape(problem):
    logits, targets = problem
    blocks = logits.unflatten(-1, (4, 3)).logsumexp(-1)
    expected = cross_entropy_nats(blocks, targets // 3)
    nats = cluster_cross_entropy_nats(logits, targets, torch.arange(12) // 3)
    torch.testing.assert_close(nats, expected, rtol=1e-5, atol=1e-6)


def test_a_member_of_a_larger_cluster_gets_a_smaller_gradient_of_the_mean_logit_and_its_share_of_log_sum_exp():
    token_to_cluster = torch.tensor([0] * 8 + [1] * 2)
    logits = torch.randn(1, 10, generator=torch.Generator().manual_seed(2))
    for form in ("mean", "logsumexp"):

        def nats(x, form=form):
            return cluster_cross_entropy_nats(x, torch.tensor([0]), token_to_cluster, form)

        gradient = with_gradient(nats, logits)[1][0]
        p = cluster_logits(logits, token_to_cluster, form).softmax(-1)[0, 0]
        share = logits[0, :8].softmax(-1) if form == "logsumexp" else torch.full((8,), 1 / 8)
        torch.testing.assert_close(gradient[:8], (p - 1) * share)


@pytest.mark.parametrize("at_once", [1, 36, 1 << 24])
def test_member_and_factorised_nats_equal_their_definition(token_to_cluster, at_once, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(5)
    n_clusters = int(token_to_cluster.max()) + 1
    states, weight = 2 * torch.randn(3, 31, 6, generator=generator), torch.randn(12, 6, generator=generator)
    cluster_weight = torch.randn(n_clusters, 6, generator=generator)
    targets = torch.randint(12, (3, 31), generator=generator)

    def definition(states, weight, cluster_weight):  # in float64, one position after the other
        nats = 0
        for state, target in zip(states.flatten(0, 1), targets.flatten(), strict=True):
            cluster = token_to_cluster[target]
            members = (token_to_cluster == cluster).nonzero()[:, 0]
            inside = (weight[members] @ state).log_softmax(0)[(members == target).nonzero()[0, 0]]
            nats = nats - (cluster_weight @ state).log_softmax(0)[cluster] - inside
        return nats / targets.numel()

    def fast(states, weight, cluster_weight):
        return factorised_nats(states, weight, cluster_weight, targets, token_to_cluster)

    problem = states, weight, cluster_weight
    expected = with_gradient(definition, *[tensor.double() for tensor in problem])
    for one, other in zip(with_gradient(fast, *problem), expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
    members = member_nats(states, weight, targets, token_to_cluster)
    clusters = cross_entropy_nats(states @ cluster_weight.T, token_to_cluster[targets])
    torch.testing.assert_close(members + clusters, fast(*problem))


def test_factorised_nats_are_the_likelihood_that_sampling_has(token_to_cluster):
    generator = torch.Generator().manual_seed(6)
    states, weight = torch.randn(20, 6, generator=generator), torch.randn(12, 6, generator=generator)
    cluster_weight = torch.randn(int(token_to_cluster.max()) + 1, 6, generator=generator)
    targets, live = torch.randint(12, (20,), generator=generator), torch.ones(12, dtype=torch.bool)
    log_probs = factorised_log_probs(states @ weight.T, states @ cluster_weight.T, token_to_cluster, live)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(20))
    nats = factorised_nats(states, weight, cluster_weight, targets, token_to_cluster)
    torch.testing.assert_close(nats, cross_entropy_nats(log_probs, targets))


def test_member_nats_under_autocast_keep_the_loss_in_float32():
    generator = torch.Generator().manual_seed(7)
    states, weight = torch.randn(40, 16, generator=generator), torch.randn(8, 16, generator=generator)
    labels, targets = torch.arange(8) // 3, torch.arange(40) % 8
    exact = with_gradient(lambda h, w: member_nats(h, w, targets, labels), states, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = with_gradient(lambda h, w: member_nats(h, w, targets, labels), states, weight)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)  # bfloat16 has eight bits


@pytest.mark.parametrize("at_once", [1, 36, 1 << 24])
def test_projected_in_chunks_equals_the_whole(problem, token_to_cluster, at_once, monkeypatch):
    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(3)
    hidden, projection = torch.randn(2, 5, 6, generator=generator), torch.randn(12, 6, generator=generator)
    targets = problem[1]

    def loss(logits, targets):
        return iar_nats(logits, targets, token_to_cluster)

    whole = with_gradient(lambda h, w: 3 * loss((h @ w.T).flatten(0, 1), targets.flatten()), hidden, projection)
    chunked = with_gradient(lambda h, w: 3 * projected(loss, h, w, targets), hidden, projection)
    for one, other in zip(chunked, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_projected_under_autocast_keeps_the_loss_in_float32():
    generator = torch.Generator().manual_seed(4)
    hidden, projection = torch.randn(40, 16, generator=generator), torch.randn(8, 16, generator=generator)
    targets = torch.arange(40) % 8
    exact = with_gradient(lambda h, w: projected(cross_entropy_nats, h, w, targets), hidden, projection)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = with_gradient(lambda h, w: projected(cross_entropy_nats, h, w, targets), hidden, projection)
    for one, other in zip(rounded, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)  # bfloat16 has eight bits


def test_projected_needs_no_gradient():
    hidden, projection = torch.randn(3, 4), torch.randn(5, 4)
    with torch.no_grad():
        nats = projected(cross_entropy_nats, hidden, projection, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(nats, cross_entropy_nats(hidden @ projection.T, torch.tensor([0, 1, 2])))


@pytest.mark.parametrize(("held", "made"), [(1 << 24, 1 << 22), (12 * 40, 12 * 7), (12 * 7, 12 * 7), (1, 1)])
@pytest.mark.parametrize("narrow", [True, False])
def test_projected_gives_the_same_by_any_pieces(held, made, narrow, monkeypatch):
    generator = torch.Generator().manual_seed(6)
    hidden, weight = torch.randn(3, 31, 6, generator=generator), torch.randn(12, 6, generator=generator)
    targets = torch.randint(12, (3, 31), generator=generator)

    def fast(hidden, weight):
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            return projected(cross_entropy_nats, hidden, weight, targets)

    def definition(hidden, weight):
        return torch.nn.functional.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten())

    monkeypatch.setattr(losses, "LOGITS_AT_ONCE", held)
    monkeypatch.setattr(losses, "_ON_CPU", made)
    expected = with_gradient(definition, hidden.double(), weight.double())
    tolerance = {"rtol": 3e-2, "atol": 1e-2} if narrow else {"rtol": 1e-5, "atol": 1e-6}
    for one, other in zip(with_gradient(fast, hidden, weight), expected, strict=True):
        torch.testing.assert_close(one.double(), other, **tolerance)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, as it is imported
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles for a CPU with g++")
def test_projected_by_torchs_compiler_gives_the_same(token_to_cluster, monkeypatch):
    monkeypatch.setattr(losses, "_ON_CPU", 12 * 40)  # the last piece is a shorter one
    generator = torch.Generator().manual_seed(8)
    hidden, weight = torch.randn(3, 31, 6, generator=generator), torch.randn(12, 6, generator=generator)
    targets = torch.randint(12, (3, 31), generator=generator)

    def nats(hidden, weight, compiled):
        loss = partial(iar_nats, token_to_cluster=token_to_cluster, weight=0.3)
        return projected(loss, hidden, weight, targets, compiled=compiled)

    expected = with_gradient(partial(nats, compiled=False), hidden, weight)
    for _ in range(2):  # made, then used again
        for one, other in zip(with_gradient(partial(nats, compiled=True), hidden, weight), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_no_positions_cost_nothing():
    hidden, weight = torch.zeros(0, 6), torch.randn(12, 6)
    targets = torch.zeros(0, dtype=torch.int64)
    nats, *gradients = with_gradient(lambda h, w: projected(cross_entropy_nats, h, w, targets), hidden, weight)
    assert nats == 0
    assert all(not gradient.any() for gradient in gradients)
