"""LlamaGen's tiny transformer and what the original makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from codeprior.model import ModelConfig, Transformer

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "llamagen_c2i_tiny_io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def original() -> Transformer:
    config = ModelConfig(dim=64, n_layers=2, n_heads=4, vocab_size=128, n_classes=10, grid=(4, 4), ffn_multiple=32)
    model = Transformer(config)
    model.load_state_dict(load_file(GOLDEN / "llamagen_c2i_tiny.safetensors"))
    return model.eval()
