"""AdamW's rates, groups and average."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from codeprior.config import TrainConfig
from codeprior.training.optimizer import learning_rate, new_average, new_optimizer, parameter_groups, step


def settings(**changes) -> TrainConfig:
    return TrainConfig(codes=Path("codes"), output=Path("output"), **changes)


def test_learning_rate_rises_stays_and_falls():
    config = settings(steps=100, warmup=10, decay=0.2, lr=1.0)
    rates = [learning_rate(step, config) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:80], 1.0)
    np.testing.assert_allclose(rates[80:], np.arange(20, 0, -1) / 20)


@pytest.mark.parametrize(("form", "half"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - 0.5**0.5)])
def test_the_rate_falls_to_its_final_value_in_the_form_asked_for(form, half):
    config = settings(steps=1000, decay=0.2, lr=1.0, decay_form=form, final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(1001)]
    assert rates[799] == rates[800] == 1.0
    assert rates[900] == pytest.approx(0.1 + 0.9 * half)
    assert rates[1000] == pytest.approx(0.1)
    assert rates == sorted(rates, reverse=True)


def test_the_schedules_of_the_papers():
    """COMPAT: LlamaGen's is constant without warm-up; GigaTok's warms up and falls by a root; IAR2's is a cosine."""
    llamagen = settings(steps=1000, lr=1e-4, warmup=0, decay=0.0)
    assert {learning_rate(at, llamagen) for at in range(1000)} == {1e-4}
    gigatok = settings(steps=1000, lr=1e-4, warmup=50, decay=0.2, decay_form="sqrt")
    assert learning_rate(0, gigatok) == pytest.approx(1e-4 / 50)
    assert learning_rate(49, gigatok) == learning_rate(799, gigatok) == 1e-4
    assert learning_rate(900, gigatok) == pytest.approx(1e-4 * (1 - 0.5**0.5))
    iar2 = settings(steps=1000, lr=1.5e-4, decay=1.0, decay_form="cosine", final_lr=5e-5)
    assert learning_rate(500, iar2) == pytest.approx(1e-4)
    assert learning_rate(1000, iar2) == pytest.approx(5e-5)


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.LayerNorm(4))


def test_decay_is_on_matrices_and_not_on_vectors():
    decayed, others = parameter_groups(small_model(), 0.05)
    assert [p.ndim for p in decayed["params"]] == [2]
    assert [p.ndim for p in others["params"]] == [1, 1]
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


@pytest.mark.parametrize("largest", [0.01, 1e6])
def test_a_step_is_that_of_clipped_gradients(largest):
    model, twin, config = small_model(), small_model(), settings(lr=1e-2)
    optimizer, other = new_optimizer(model, config), new_optimizer(twin, config)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    for rate in (1e-2, 5e-3):
        for each in (model, twin):
            each(x).square().sum().backward()
        norm = torch.stack([p.grad.norm() for p in twin.parameters()]).norm()
        for p in twin.parameters():
            p.grad.mul_(min(1.0, largest / (float(norm) + 1e-6)))
        for group in other.param_groups:
            group["lr"] = rate
        other.step()
        other.zero_grad()
        assert step(optimizer, rate, largest) == pytest.approx(float(norm), rel=1e-5)
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)
            assert p.grad is None


def test_an_average_begins_with_the_model_and_follows_it():
    model = small_model()
    average, expected = new_average(model, 0.9), model[0].weight.detach().clone()
    for _ in range(3):
        with torch.no_grad():
            model[0].weight.add_(1)
        average.update_parameters(model)
        expected = 0.9 * expected + 0.1 * model[0].weight.detach()
    torch.testing.assert_close(average.module[0].weight, expected)
