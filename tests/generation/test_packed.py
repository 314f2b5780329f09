import copy

import pytest
import torch
from torch import nn

from codeprior.generation.packed import CastLinear, PackedLinear, pack, products_dtype
from codeprior.generation.tiles import tile_size
from codeprior.model import Transformer, model_config
from codeprior.products import has_onednn


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("in_order", [False, True])
def test_every_linear_map_is_replaced_by_one_that_computes_the_same(original, recorded, precision, in_order):
    packed = copy.deepcopy(original)
    pack(packed, precision, in_order=in_order)
    left = sum(isinstance(module, nn.Linear) for module in packed.modules())
    assert left == (0 if (in_order and has_onednn()) or precision == "bf16" else 11)  # five a layer, and the output
    with torch.no_grad():
        logits = packed(recorded["classes"], recorded["tokens"][:, :-1])
    expected = recorded["teacher_forced_logits"]
    # float32: the same sums in another order; bfloat16: 8 bits of each factor, averaged out over sums of 64
    tolerance = 1e-5 if precision == "fp32" else 0.02 * expected.std().item()
    assert (logits - expected).std() < tolerance
    assert products_dtype(packed) == (torch.float32 if precision == "fp32" else torch.bfloat16)


@pytest.mark.skipif(not has_onednn(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_give_the_plain_product(dtype):
    linear = nn.Linear(96, 40, bias=False)
    x = torch.randn(6, 1, 96)
    torch.testing.assert_close(PackedLinear(linear, dtype)(x), CastLinear(linear, dtype)(x), rtol=1e-2, atol=1e-2)
    assert PackedLinear(linear, dtype)(x).dtype == torch.float32


@pytest.mark.parametrize(("name", "tile"), [("tiny", 64), ("GPT-B", 8), ("GPT-3B", 8)])
def test_tiles_are_as_wide_as_the_model_leaves_room_for(name, tile):
    config = model_config(name, vocab_size=4, n_classes=2, grid=(2, 2))
    assert tile_size(config, torch.device("cpu"), 100) == tile
    assert tile_size(config, torch.device("cuda"), 100) == 100


def test_a_packed_model_with_a_factorised_output_generates(original):
    config = model_config("tiny", vocab_size=12, n_classes=2, grid=(2, 2), n_clusters=3)
    model = Transformer(config, torch.Generator().manual_seed(0)).eval()
    with torch.no_grad():
        before = model(torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.int64))
        pack(model, "fp32")
        torch.testing.assert_close(model(torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.int64)), before)
