"""AdamW as the papers set it: its groups, the rate of each step, and the average over the steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from codeprior.config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """Rate of a step (from 0): linear warm-up, constant, then a fall over the last `decay` share of the steps.

    With decay 0 it is LlamaGen's, with 0.2 and sqrt GigaTok's, with 1 and cosine IAR2's.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    left = min(1.0, (config.steps - step) / (config.decay * config.steps)) if config.decay else 1.0
    share = {"linear": left, "cosine": (1 - math.cos(math.pi * left)) / 2, "sqrt": 1 - math.sqrt(1 - left)}
    return config.final_lr + (config.lr - config.final_lr) * share[config.decay_form]


def new_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW of a model, fused."""
    groups = parameter_groups(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, config.beta2), fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups: decay on matrices, embeddings and output included; none on the norms' weights (LlamaGen)."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def new_average(model: nn.Module, decay: float) -> AveragedModel:
    """The average of a model's weights over steps, which begins with the weights that it has now."""
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.update_parameters(model)  # the first only copies
    return average


def step(optimizer: torch.optim.Optimizer, rate: float, largest_norm: float) -> Tensor:
    """Take a step with gradients scaled down to a largest norm; their norm before, a scalar on their device."""
    from torch.distributed.tensor import DTensor

    for group in optimizer.param_groups:
        group["lr"] = rate
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    known = norm.device.type == "cpu" and not isinstance(norm, DTensor)  # elsewhere to look at it is to wait for it
    if not known or norm > largest_norm:
        torch.nn.utils.clip_grads_with_norm_(parameters, largest_norm, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
