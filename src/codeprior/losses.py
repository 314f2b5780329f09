"""Losses of a transformer over codes: functions of tensors, in nats, for this package's loop or anybody else's.

Shapes: N positions (any leading shape), V vocabulary of tokens, G clusters, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from codeprior.products import eager_on_cpu, product

ClusterForm = Literal["logsumexp", "mean", "logmeanexp"]

# The logit of what is never predicted: its probability is exactly 0, and differences of it are finite.
NEVER = -1e9

# Gradients of logits that are held at a time by `projected`, 64 MB in float32; on a CPU logits are made by a quarter of
# them, to stay near the cache. A GPU holds four times as many: with fewer it would wait for its orders.
LOGITS_AT_ONCE, _ON_CPU, _ON_GPU = 1 << 24, 1 << 22, 1 << 26

_RUNS = 32  # of positions whose clusters are neighbours, in `member_nats`


def cross_entropy_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p(target): logits (..., V) float32, targets (...) int64; a scalar, nats per token."""
    logits, targets = logits.flatten(0, -2), targets.flatten()
    if not eager_on_cpu(logits):
        return F.cross_entropy(logits, targets)
    nats: Tensor = _Token.apply(logits, targets)  # exp once for both ways, where torch takes it in each
    return nats


def token_nats(logits: Tensor, targets: Tensor, log_sizes: Tensor) -> Tensor:
    """Mean of -log p(token) under a model of clusters that picks a token of the predicted cluster uniformly.

    p(token) = p(cluster of the token) / size of the cluster, so the loss is the clusters' cross-entropy plus the mean
    log size of the target's cluster: comparable between vocabularies, which the cross-entropy alone is not (fewer
    clusters are easier to predict). Its gradient is that of `cross_entropy_nats`.

    Parameters
    ----------
    logits : Tensor of shape (B, T, G), float32
    targets : Tensor of shape (B, T), int64
        The cluster of each token.
    log_sizes : Tensor of shape (G,), float32
        Logarithm of the number of tokens that may be picked from each cluster; zeros where clusters are tokens.

    Returns
    -------
    nats : scalar Tensor
        Nats per token.
    """
    return cross_entropy_nats(logits, targets) + log_sizes[targets].mean()


def cluster_logits(logits: Tensor, token_to_cluster: Tensor, form: ClusterForm = "logsumexp") -> Tensor:
    """Logits of the clusters from those of their tokens.

    Parameters
    ----------
    logits : Tensor of shape (..., V), float32
    token_to_cluster : Tensor of shape (V,), int64
        Cluster of each token, 0 to G - 1, none empty; sizes may differ.
    form : {"logsumexp", "mean", "logmeanexp"}
        "logsumexp": log of the sum of exp: their softmax is the model's own probability of each cluster, whatever the
        partition. "mean": the mean logit, as IAR's paper writes it: not a probability of the model, and a token's
        gradient shrinks with the size of its cluster. "logmeanexp": log of the mean of exp, which takes no notice of
        sizes: a model without preference among tokens has none among clusters.

    Returns
    -------
    Tensor of shape (..., G), float32

    References
    ----------
    IAR, arXiv:2501.00880, Sec. 3.3 (mean); its published code uses log-sum-exp over equal blocks.
    """
    sizes = token_to_cluster.bincount()
    if _are_blocks(token_to_cluster, sizes):  # a rearranged codebook: IAR's own form
        blocks = logits.unflatten(-1, (len(sizes), -1))
        logs = blocks.mean(-1) if form == "mean" else blocks.logsumexp(-1)
        return logs - sizes.log() if form == "logmeanexp" else logs
    if form == "mean":
        sums = logits.new_zeros(*logits.shape[:-1], len(sizes))
        return sums.index_add(-1, token_to_cluster, logits) / sizes
    logs = segment_logsumexp(logits, token_to_cluster)
    return logs if form == "logsumexp" else logs - sizes.log()


def _are_blocks(token_to_cluster: Tensor, sizes: Tensor) -> bool:
    """Whether clusters are runs of tokens, all of one length."""
    n_tokens, n_clusters = len(token_to_cluster), len(sizes)
    blocks = torch.arange(n_tokens, device=sizes.device) // (n_tokens // n_clusters)
    return n_tokens % n_clusters == 0 and torch.equal(blocks, token_to_cluster)


def segment_logsumexp(logits: Tensor, token_to_cluster: Tensor) -> Tensor:
    """log of the sum of exp of each cluster's tokens: (..., V) and (V,) to (..., G)."""
    n_clusters = int(token_to_cluster.max()) + 1
    zeros = logits.new_zeros(*logits.shape[:-1], n_clusters)
    index = token_to_cluster.expand_as(logits)
    largest = (zeros - torch.inf).scatter_reduce(-1, index, logits.detach(), "amax")
    return zeros.index_add(-1, token_to_cluster, (logits - largest[..., token_to_cluster]).exp()).log() + largest


def factorised_log_probs(logits: Tensor, cluster_logits: Tensor, token_to_cluster: Tensor, live: Tensor) -> Tensor:
    """log p(token) = log p(its cluster) + log p(token, given its cluster), for all tokens.

    The second factor is the softmax among the live tokens of the cluster.

    Parameters
    ----------
    logits : Tensor of shape (..., V), float32
        Of tokens; they matter up to a constant in each cluster.
    cluster_logits : Tensor of shape (..., G), float32
    token_to_cluster : Tensor of shape (V,), int64
    live : Tensor of shape (V,), bool
        Which tokens may be predicted; at least one of each cluster.

    Returns
    -------
    Tensor of shape (..., V), float32
        `NEVER` for what is not live: finite, so that guidance may subtract one from another.
    """
    inside = segment_logsumexp(logits.masked_fill(~live, -torch.inf), token_to_cluster)
    each_cluster = cluster_logits.log_softmax(-1) - inside
    return (logits + each_cluster[..., token_to_cluster]).masked_fill(~live, NEVER)


def cluster_cross_entropy_nats(
    logits: Tensor, targets: Tensor, token_to_cluster: Tensor, form: ClusterForm = "logsumexp"
) -> Tensor:
    """Mean of -log p(cluster of the target): a scalar, nats per token.

    With "logsumexp" p is the model's own: log-sum-exp over all tokens less that over the cluster's members. On a CPU
    only members are looked at, in time and memory of N times the mean size of a target's cluster; elsewhere they are
    told from others by a mask, for their number is nothing that a GPU should be waited for.

    Parameters
    ----------
    logits : Tensor of shape (..., V), float32
    targets : Tensor of shape (...), int64
        Tokens.
    token_to_cluster, form
        As `cluster_logits`.
    """
    if form != "logsumexp":
        return cross_entropy_nats(cluster_logits(logits, token_to_cluster, form), token_to_cluster[targets])
    if not eager_on_cpu(logits):
        outside = token_to_cluster != token_to_cluster[targets].unsqueeze(-1)
        return (logits.logsumexp(-1) - logits.masked_fill(outside, -torch.inf).logsumexp(-1)).mean()
    nats: Tensor = _TokenAndCluster.apply(logits.flatten(0, -2), targets.flatten(), token_to_cluster, 0.0, 1.0)
    return nats


def iar_nats(
    logits: Tensor,
    targets: Tensor,
    token_to_cluster: Tensor,
    *,
    weight: float = 1.0,
    form: ClusterForm = "logsumexp",
) -> Tensor:
    """IAR's loss: -log p(target) + weight * -log p(cluster of the target), means over positions; a scalar.

    Arguments as `cluster_cross_entropy_nats`. In another trainer it stands where the cross-entropy stood, see
    examples/iar_in_your_trainer.py.

    References
    ----------
    IAR, arXiv:2501.00880, Eq. 5-6.
    """
    if form == "logsumexp" and eager_on_cpu(logits):  # one log-sum-exp for both
        nats: Tensor = _TokenAndCluster.apply(logits.flatten(0, -2), targets.flatten(), token_to_cluster, 1.0, weight)
        return nats
    cluster = cluster_cross_entropy_nats(logits, targets, token_to_cluster, form)
    return cross_entropy_nats(logits, targets) + weight * cluster


def _members_of(clusters: Tensor, token_to_cluster: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of each of N clusters, one after the other: places in the N rows, and tokens, int64 both."""
    members = token_to_cluster.argsort(stable=True)
    sizes = token_to_cluster.bincount()
    lengths = sizes[clusters]
    row = torch.arange(len(clusters), device=clusters.device).repeat_interleave(lengths)
    first = (sizes.cumsum(0) - sizes)[clusters] - (lengths.cumsum(0) - lengths)
    return row, members[first[row] + torch.arange(len(row), device=row.device)]


def _probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(logits) (N, V), and the log-sum-exp of each row (N,)."""
    probs = logits.softmax(-1)
    return probs, logits.amax(-1) - probs.amax(-1).log()


class _Token(torch.autograd.Function):
    """-log p(token); logits (N, V). Its gradient is softmax(logits), less one at the token."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        probs, total = _probabilities(logits)
        ctx.save_for_backward(probs, targets)
        return (total - logits.gather(-1, targets[:, None])[:, 0]).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        probs, targets = ctx.saved_tensors
        share = grad / len(targets)
        out = probs * share
        out[torch.arange(len(targets), device=targets.device), targets] -= share
        return out, None


class _TokenAndCluster(torch.autograd.Function):
    """a * -log p(token) + b * -log p(its cluster), one log-sum-exp for both; logits (N, V).

    Its gradient is (a + b) softmax(logits), less a at the token, less b times the softmax among its cluster's members.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, token_to_cluster: Tensor, a: float, b: float) -> Tensor:
        probs, total = _probabilities(logits)
        row, member = _members_of(token_to_cluster[targets], token_to_cluster)
        values = logits[row, member]
        largest = logits.new_full((len(logits),), -torch.inf).scatter_reduce(0, row, values, "amax")
        cluster = logits.new_zeros(len(logits)).index_add(0, row, (values - largest[row]).exp()).log() + largest
        token = logits.gather(-1, targets[:, None])[:, 0]
        ctx.save_for_backward(probs, targets, row, member, (values - cluster[row]).exp())
        ctx.weights = (a, b)
        return ((a + b) * total - a * token - b * cluster).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        probs, targets, row, member, share = ctx.saved_tensors
        a, b = (weight * grad / len(targets) for weight in ctx.weights)
        out = probs * (a + b)
        out[row, member] -= b * share
        out[torch.arange(len(targets), device=targets.device), targets] -= a
        return out, None, None, None, None


def member_nats(states: Tensor, weight: Tensor, targets: Tensor, token_to_cluster: Tensor) -> Tensor:
    """Mean of -log p(target, given its cluster): softmax of ``states @ weight.T`` among the members of the cluster.

    What one position needs are the few logits of its target's cluster. Positions in the order of their clusters need
    neighbouring members, so that a run of positions is one small matrix product, masked: some N V / 32 logits in place
    of N V, a run at a time, gradients made at once.

    Parameters
    ----------
    states : Tensor of shape (..., D)
    weight : Tensor of shape (V, D)
        Under autocast the products are made in its precision, and the logits and the loss in float32.
    targets : Tensor of shape (...), int64
        Tokens.
    token_to_cluster : Tensor of shape (V,), int64
        Cluster of each token, 0 to G - 1; sizes may differ.

    Returns
    -------
    scalar Tensor, float32
        Nats per token.
    """
    result: Tensor = _Members.apply(states.flatten(0, -2), weight, targets.flatten(), token_to_cluster)
    return result


def factorised_nats(
    states: Tensor,
    weight: Tensor,
    cluster_weight: Tensor,
    targets: Tensor,
    token_to_cluster: Tensor,
    *,
    compiled: bool = False,
) -> Tensor:
    """Mean of -log p(cluster of the target) - log p(target, given its cluster): the exact likelihood, nats per token.

    Parameters
    ----------
    states : Tensor of shape (..., D)
        What both factors are predicted from.
    weight : Tensor of shape (V, D)
        Of the tokens' logits.
    cluster_weight : Tensor of shape (G, D)
        Of the clusters' logits.
    targets, token_to_cluster
        As `member_nats`.
    compiled : bool
        As `projected`, of the clusters' part.
    """
    clusters = projected(cross_entropy_nats, states, cluster_weight, token_to_cluster[targets], compiled=compiled)
    return clusters + member_nats(states, weight, targets, token_to_cluster)


def projected(
    loss: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    projection: Tensor,
    targets: Tensor,
    *,
    compiled: bool = False,
) -> Tensor:
    """``loss(hidden @ projection.T, targets)`` without ever holding all of the logits.

    Chunk by chunk, logits are made, and where gradients are wanted also theirs, at once: nothing is made twice, and
    memory for logits does not grow with the batch.

    Parameters
    ----------
    loss : callable
        Of logits (n, V) float32 and targets (n,): the mean over the positions, a scalar.
    hidden : Tensor of shape (..., D)
    projection : Tensor of shape (V, D)
        Under autocast the products are made in its precision, and the logits and the loss in float32.
    targets : Tensor of shape (...), int64
    compiled : bool
        Whether torch's compiler makes the loss and its gradient: a GPU then reads logits as products leave them, and
        writes gradients as the next ones take them.

    Returns
    -------
    scalar Tensor, float32
    """
    measure = partial(_compiled() if compiled else _in_float32, loss)
    result: Tensor = _Projected.apply(measure, hidden.flatten(0, -2), projection, targets.flatten())
    return result


def _in_float32(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor) -> Tensor:
    return loss(logits.float(), targets)


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_in_float32)


def _working_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """The precision of matrix products: autocast's where it is on."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype


def _chunked(
    loss: Callable[..., Tensor], x: Tensor, weights: Tensor, targets: Tensor, n: int, chunk: int, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of a loss over some of n positions, over n; if `wanted`, also the gradients of their logits, as precise as x.

    Logits are made `chunk` positions at a time.
    """
    total = torch.zeros((), device=x.device)
    grads = x.new_empty(len(x), len(weights)) if wanted and chunk < len(x) else None
    for start in range(0, len(x), chunk):
        rows = slice(start, start + chunk)
        logits = product(x[rows], weights).requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            nats = loss(logits, targets[rows]) * (len(logits) / n)
        total += nats.detach()
        if wanted:
            (grad,) = torch.autograd.grad(nats, logits)
            if grads is None:
                return total, grad.to(x.dtype)
            grads[rows] = grad
    return total, grads


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Callable[..., Tensor], hidden: Tensor, projection: Tensor, targets: Tensor) -> Tensor:
        device = hidden.device.type
        dtype = _working_dtype(device, projection.dtype)
        narrow, weights = hidden.detach().to(dtype), projection.detach().to(dtype)
        wanted = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        hidden_grad = torch.empty_like(narrow) if wanted else None
        projection_grad: Tensor | None = None
        at_once = max(1, (LOGITS_AT_ONCE if device == "cpu" else _ON_GPU) // len(weights))
        chunk = min(at_once, max(1, _ON_CPU // len(weights))) if device == "cpu" else at_once
        if dtype == projection.dtype:  # products can be added up without another pass
            at_once = chunk
        total = torch.zeros((), device=hidden.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(targets), at_once):
                some = slice(start, start + at_once)
                x = narrow[some]
                nats, grads = _chunked(loss, x, weights, targets[some], len(targets), chunk, wanted)
                total += nats
                if grads is not None and hidden_grad is not None:
                    hidden_grad[some] = product(grads, weights.T)
                    if projection_grad is None:
                        projection_grad = (grads.T @ x).to(projection.dtype)
                    elif dtype == projection.dtype:
                        projection_grad.addmm_(grads.T, x)
                    else:
                        projection_grad += grads.T @ x
        if wanted and projection_grad is None:  # no positions
            projection_grad = torch.zeros_like(projection)
        ctx.save_for_backward(hidden_grad, projection_grad)
        ctx.hidden_dtype = hidden.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor, None]:
        hidden_grad, projection_grad = ctx.saved_tensors
        if grad.device.type != "cpu" or grad != 1:  # a pass over both; on a GPU to know would be to wait
            hidden_grad, projection_grad = hidden_grad * grad, projection_grad * grad
        return None, hidden_grad.to(ctx.hidden_dtype), projection_grad, None


class _Members(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Tensor, token_to_cluster: Tensor) -> Tensor:
        device = states.device.type
        dtype = _working_dtype(device, weight.dtype)
        narrow = states.detach().to(dtype)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        states_grad = torch.empty_like(narrow) if wanted else None
        weight_grad = torch.zeros_like(weight) if wanted else None
        members = token_to_cluster.argsort(stable=True)  # tokens in the order of their clusters
        place = torch.empty_like(members).scatter_(0, members, torch.arange(len(members), device=members.device))
        ends = token_to_cluster.bincount().cumsum(0)
        order = place[targets].argsort()
        clusters, places = token_to_cluster[targets][order], place[targets][order]
        lasts, firsts = ends[clusters], (ends - token_to_cluster.bincount())[clusters]
        run = max(1, min(len(targets) // _RUNS, LOGITS_AT_ONCE // len(weight)))
        starts = range(0, len(targets), run)
        bounds = torch.stack([firsts[::run], lasts[[min(start + run, len(targets)) - 1 for start in starts]]], dim=1)
        total = torch.zeros((), device=states.device)
        with torch.autocast(device, enabled=False):
            for start, (low, high) in zip(starts, bounds.tolist(), strict=True):
                rows = slice(start, start + run)
                tokens, positions = members[low:high], order[rows]
                x, w = narrow[positions], weight.detach()[tokens].to(dtype)
                column = torch.arange(low, high, device=states.device)
                outside = (column < firsts[rows, None]) | (column >= lasts[rows, None])
                log_probs = (x @ w.T).float().masked_fill_(outside, -torch.inf).log_softmax(-1)
                aim = (places[rows] - low)[:, None]
                total -= log_probs.gather(-1, aim).sum()
                if states_grad is not None and weight_grad is not None:
                    grad = log_probs.exp_().scatter_add_(-1, aim, -torch.ones_like(aim, dtype=torch.float32))
                    grad = grad.div_(len(targets)).to(dtype)
                    states_grad[positions] = grad @ w
                    weight_grad.index_add_(0, tokens, (grad.T @ x).to(weight.dtype))
        ctx.save_for_backward(states_grad, weight_grad)
        ctx.states_dtype = states.dtype
        return total / len(targets)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states_grad, weight_grad = ctx.saved_tensors
        return (states_grad * grads[0]).to(ctx.states_dtype), weight_grad * grads[0], None, None
