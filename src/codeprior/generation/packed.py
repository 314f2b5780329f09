"""A transformer made ready to generate: its products as fast as the device makes them at the precision asked for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codeprior.model import Transformer
from codeprior.products import has_onednn

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CastLinear(nn.Module):
    """A linear map in another precision than what goes in and comes out, as autocast has it."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().to(dtype))

    weight: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)


class PackedLinear(CastLinear):
    """The same with its weights in the order in which oneDNN reads them.

    The plain product brings them into that order at every call; of a few rows that takes longer than the product.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.ops.mkldnn._linear_pointwise(x.to(self.weight.dtype), self.weight, None, "none", [], "")
        return y.to(x.dtype)


def pack(model: nn.Module, precision: str, *, in_order: bool = True) -> None:
    """Replace the linear maps of a model in place: weights in that precision ("fp32" or "bf16"), packed on a CPU.

    Everything else stays in float32: norms, rotations, what is added up from layer to layer. Not `in_order` they are
    never packed, as torch's compiler wants them.
    """
    dtype = _DTYPES[precision]
    for module in list(model.modules()):
        for name, linear in list(module.named_children()):
            if not isinstance(linear, nn.Linear) or linear.bias is not None:
                continue
            if in_order and linear.weight.device.type == "cpu" and has_onednn():
                setattr(module, name, PackedLinear(linear, dtype))
            elif dtype != linear.weight.dtype:
                setattr(module, name, CastLinear(linear, dtype))


def products_dtype(model: Transformer) -> torch.dtype:
    """Of the numbers that a model's products take: its keys and values need be no more precise."""
    block: Any = model.layers[0]
    return block.attention.wqkv.weight.dtype
