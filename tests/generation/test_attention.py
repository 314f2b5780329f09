import pytest
import torch

from codeprior.generation.attention import OneQueryCache
from codeprior.model import KVCache, ModelConfig

CONFIG = ModelConfig(dim=48, n_layers=2, n_heads=3, vocab_size=8, n_classes=2, grid=(5, 8))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("padded", [False, True])
def test_one_query_finds_what_torchs_attention_finds(dtype, tolerance, padded):
    generator = torch.Generator().manual_seed(4)
    slow, fast = (kind(CONFIG, 4, device=torch.device("cpu"), dtype=dtype) for kind in (KVCache, OneQueryCache))
    padding = torch.tensor([0, 2, 3, 1]) if padded else None
    for n_new in (4, *[1] * 36):  # the first are given together
        q, k, v = torch.randn(3, 4, 3, n_new, 16, generator=generator).unbind(0)
        for layer in range(2):
            found = []
            for cache in (slow, fast):
                if layer == 0:
                    _, mask = cache.advance(n_new, padding)
                found.append(cache.attend(layer, q, k, v, mask))
            # bfloat16: torch rounds the query and the weights to it too, ours are float32
            torch.testing.assert_close(found[1], found[0], rtol=tolerance, atol=tolerance)
    assert slow.length == fast.length == 40
    assert torch.equal(slow.keys[:, :, :, :40], fast.keys[:, :, :, :40])
    for cache in (slow, fast):
        cache.keep(2)
        _, mask = cache.advance(1)
        assert cache.attend(1, q[:2], k[:2], v[:2], mask).shape == (2, 3, 1, 16)
