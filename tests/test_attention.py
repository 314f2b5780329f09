"""Attention of a training step against the definition, in float64, and against the model's other way."""

from __future__ import annotations

import pytest
import torch

from codeprior import model as models
from codeprior.attention import ROWS, attention, beats_kernel
from codeprior.model import ModelConfig, Transformer, rotate


def by_definition(qkv, table, causal):
    qk = qkv[:, :, :2] if table is None else rotate_exactly(qkv[:, :, :2], table)
    q, k, v = (x.transpose(1, 2) for x in (qk[:, :, 0], qk[:, :, 1], qkv[:, :, 2]))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def rotate_exactly(x, table):
    (a, b), (cos, sin) = x.unflatten(-1, (-1, 2)).unbind(-1), table[:, None, None].unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


@pytest.mark.parametrize("n", [1, 5, ROWS, 2 * ROWS + 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_equals_the_definition_with_gradients(n, causal, turned):
    torch.manual_seed(0)
    qkv, grad = torch.randn(2, n, 3, 3, 8, requires_grad=True), torch.randn(2, n, 24)
    table = torch.randn(n, 4, 2) if turned else None
    y = attention(qkv, table, causal=causal)
    exact = qkv.detach().double().requires_grad_()
    expected = by_definition(exact, None if table is None else table.double(), causal)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-5)
    (found,), (wanted,) = torch.autograd.grad(y, qkv, grad), torch.autograd.grad(expected, exact, grad.double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_under_autocast_it_is_in_float32():
    qkv = torch.randn(2, 40, 3, 2, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = attention(qkv, None, causal=True)
    torch.testing.assert_close(y, by_definition(qkv.detach().float(), None, causal=True), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    assert qkv.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("causal", [True, False])
def test_a_model_computes_the_same_both_ways(causal, monkeypatch):
    config = ModelConfig(32, 2, 2, vocab_size=20, n_classes=3, grid=(12, 12), causal=causal)
    model = Transformer(config, torch.Generator().manual_seed(0)).eval()
    torch.nn.init.normal_(model.output.weight)
    classes, tokens = torch.tensor([0, 2]), torch.randint(20, (2, 144))

    def outcome(plain):
        monkeypatch.setattr(models, "beats_kernel", lambda x, *, causal: plain)
        model.zero_grad()
        logits = model(classes, tokens[:, :-1] if causal else tokens)
        logits.logsumexp(-1).sum().backward()
        return logits, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    (logits, grads), (expected, expected_grads) = outcome(plain=True), outcome(plain=False)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-3, atol=1e-3)


def test_without_gradients_float32_takes_torchs_kernel():
    x = torch.randn(2, 256, 8, requires_grad=True)
    assert beats_kernel(x, causal=True)
    assert not beats_kernel(x, causal=False)
    assert not beats_kernel(x.detach(), causal=True)
    with torch.no_grad():
        assert not beats_kernel(x, causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert beats_kernel(x.detach(), causal=False)
        assert not beats_kernel(torch.randn(1, 1024, 8), causal=True)


def test_turning_pairs_is_the_models_rotation():
    x, table = torch.randn(2, 7, 2, 3, 8), torch.randn(7, 4, 2)
    torch.testing.assert_close(rotate(x, table), rotate_exactly(x, table))
