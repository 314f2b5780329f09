"""Products of a training step against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from codeprior import products
from codeprior.products import Linear, product


@pytest.fixture(params=[0, 1 << 62], ids=["by oneDNN", "by torch"])
def way(request, monkeypatch):
    monkeypatch.setattr(products, "WORTH_IT", request.param)
    monkeypatch.setattr(products, "is_amd", lambda: True)


@pytest.mark.parametrize("shape", [(5,), (3, 4, 5)])
def test_a_linear_map_and_its_gradients_are_torchs(way, shape):
    torch.manual_seed(0)
    linear, x = Linear(5, 7), torch.randn(*shape, requires_grad=True)
    y = linear(x)
    torch.testing.assert_close(y, F.linear(x, linear.weight))
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, linear.weight), grad)
    torch.testing.assert_close(found, torch.autograd.grad(F.linear(x, linear.weight), (x, linear.weight), grad))


def test_products_of_turned_matrices(way):
    x, weight = torch.randn(6, 5), torch.randn(5, 7)
    torch.testing.assert_close(product(x, weight.T), x @ weight)
    torch.testing.assert_close(product(x.T.contiguous().T, weight.T), x @ weight)


def test_without_gradients_and_under_autocast_it_is_torchs_own(way):
    linear, x = Linear(5, 7), torch.randn(4, 5)
    with torch.no_grad():
        torch.testing.assert_close(linear(x), F.linear(x, linear.weight), rtol=0, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x).dtype == torch.bfloat16
