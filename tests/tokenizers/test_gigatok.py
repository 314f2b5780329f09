"""The 1-D tokenizers are GigaTok's: their names, shapes and numbers, recorded from the original (182920c) in float32.

`gigatok_io.npz` holds every fifth pixel of whole passes of VQ_SS256, VQ_SB256 and VQ_BL256; `gigatok_parts_io.npz` the
outputs of the original's blocks with each option, made with PyTorch 2.13 on inputs that `normal` repeats.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.errors import InputError
from codeprior.tokenizers.gigatok import PRESETS, GigaTok, GigaTokConfig, GigaTokTokenizer, PixelDecoder, PixelEncoder
from codeprior.tokenizers.qformer import Decoder1Dto2D, Encoder2Dto1D, QFormerConfig, pooled_pyramid
from codeprior.tokenizers.vqgan import VectorQuantizer, VQGANConfig
from recorded import rebuild

GOLDEN = Path(__file__).parent.parent / "golden"
STATE_DICTS = json.loads((GOLDEN / "gigatok_state_dicts.json").read_text())
NAMES = {
    "VQ_SS256": "GigaTok-S-S",
    "VQ_SB256": "GigaTok-S-B",
    "VQ_BL256": "GigaTok-B-L",
    "VQ_XLXXL256": "GigaTok-XL-XXL",
}
RECORDED = [name for name in NAMES if name != "VQ_XLXXL256"]  # a pass of 2.9 billion parameters takes 13 GB
CNN = {"encoder_multipliers": (1, 2), "decoder_multipliers": (1, 2), "channels": 32, "image_size": 8}
TINY = GigaTokConfig("tiny", "tiny", codebook_size=64, n_tokens=16, z_channels=32, **CNN)


def normal(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def available_bytes():
    lines = Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), float("inf"))


def meta(config):
    with torch.device("meta"):
        return GigaTok(config)


@pytest.fixture(scope="module")
def tiny():
    return GigaTokTokenizer(rebuild(meta(TINY)), 8)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_names_the_shapes_and_the_parameters_of_the_original(name):
    recorded, expected = STATE_DICTS[name], {}
    for key, shape in recorded["state_dict"].items():
        for layer in range(recorded["layers"][key.split(".")[0]] if "*" in key else 1):
            expected[key.replace("*", str(layer))] = tuple(shape)
    del expected["quantize.codebook_used"]
    model = meta(PRESETS[NAMES[name]])
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded["params"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECORDED)
def test_it_computes_what_the_original_computed(name):
    if 5 * STATE_DICTS[name]["params"] + 10**9 > available_bytes():  # float32, a layer's features, the rest
        pytest.skip("memory is short")
    recorded = np.load(GOLDEN / "gigatok_io.npz")
    model = rebuild(meta(PRESETS[NAMES[name]]))
    image = np.random.default_rng(3).uniform(-1, 1, (1, 3, 256, 256)).astype(np.float32)
    with torch.inference_mode():
        codes = model.encode(torch.from_numpy(image))
        vectors, decoded = model.quantize.lookup(codes[:, None]), model.decode(codes)
    assert np.array_equal(codes.numpy().ravel(), recorded[f"{name}_indices"])
    # The original's vectors went through its rotation trick, whose guards against zero move them by some 1e-6.
    np.testing.assert_allclose(vectors.numpy(), recorded[f"{name}_quantized"], atol=1e-5)
    # Recorded in float16, which has steps of 2e-3 at the largest values, between 2 and 4.
    np.testing.assert_allclose(decoded[..., ::5, ::5].numpy(), recorded[f"{name}_reconstruction"], atol=1.2e-3)


def part(name):
    """One of the recorded blocks, and what was put in."""
    kind, _, option = name.rpartition("coder_")
    qk_norm, queries = option.endswith("_qk_norm"), option.removesuffix("_qk_norm")
    if kind in ("en", "de"):
        config = QFormerConfig(256, 4, 4, 32, 16, 4, queries, qk_norm)
        if kind == "en":
            return Encoder2Dto1D(config), normal(0, 2, 32, 4, 4)
        return Decoder1Dto2D(config, distill_width=None), normal(1, 2, 32, 1, 16)
    cnn = VQGANConfig(32, (1, 2), 2, 3, 32, attention="attention1" in option)
    if kind == "pixel_en":
        return PixelEncoder(cnn), normal(2, 1, 3, 16, 16)
    norm, depth = "adaptive1" in option, "depth1" in option
    return PixelDecoder(cnn, adaptive_norm=norm, depth_to_space=depth), normal(3, 1, 32, 8, 8)


PARTS = [name for name in np.load(GOLDEN / "gigatok_parts_io.npz").files if "coder" in name]


@pytest.mark.parametrize("name", PARTS)
def test_each_part_computes_what_the_originals_part_computed(name):
    module, x = part(name)
    with torch.inference_mode():
        y = rebuild(module)(x)
    # float32 sums in another order: attention here is fused
    np.testing.assert_allclose(y.numpy(), np.load(GOLDEN / "gigatok_parts_io.npz")[name], atol=2e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_the_quantizer_compares_on_the_sphere_or_not_as_the_original(normalize):
    recorded = np.load(GOLDEN / "gigatok_parts_io.npz")
    quantizer = rebuild(VectorQuantizer(64, 8, normalize=normalize))
    codes = quantizer.codes(normal(4, 1, 8, 1, 40))
    assert np.array_equal(codes.numpy().ravel(), recorded[f"quantizer_normalize{normalize:d}_codes"])
    vectors = recorded[f"quantizer_normalize{normalize:d}_vectors"]
    np.testing.assert_allclose(quantizer.lookup(codes).numpy(), vectors, rtol=1e-6)


def test_queries_are_means_of_ever_finer_blocks_split_in_width_first():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    rows = pooled_pyramid(x, 16)[0, :, 0].tolist()
    halves = [x[..., :2].mean().item(), x[..., 2:].mean().item()]
    quarters = [x[..., i : i + 2, j : j + 2].mean().item() for i in (0, 2) for j in (0, 2)]
    eighths = [x[..., i : i + 2, j].mean().item() for i in (0, 2) for j in range(4)]
    assert rows == [7.5, 7.5, *halves, *quarters, *eighths]


def test_a_tokenizer_gives_and_takes_a_sequence_whatever_the_grid(tiny):
    images = normal(5, 2, 3, 8, 8).clamp(-1, 1)
    codes = tiny.encode(images)
    assert (codes.shape, codes.dtype) == ((2, 16), torch.int64)
    assert (tiny.image_size, tiny.grid(8), len(tiny.codebook)) == (8, (4, 4), 64)
    decoded = tiny.decode(codes, (4, 4))
    assert decoded.shape == images.shape
    assert torch.equal(decoded, tiny.decode(codes, (1, 16)))


def test_an_image_is_encoded_alike_alone_and_in_a_batch(tiny):
    images = normal(6, 5, 3, 8, 8).clamp(-1, 1)
    codes = tiny.encode(images)
    assert torch.equal(codes, torch.cat([tiny.encode(image[None]) for image in images]))
    alone = torch.cat([tiny.decode(row[None], (4, 4)) for row in codes])
    torch.testing.assert_close(tiny.decode(codes, (4, 4)), alone, atol=1e-5, rtol=0)


def test_tokens_are_stored_in_the_order_of_the_sequence_and_the_order_matters(tiny):
    images = normal(7, 3, 3, 8, 8).clamp(-1, 1)
    with torch.inference_mode():
        features = tiny.model.features(images)
    assert features.shape == (3, 8, 1, 16)
    codes = tiny.encode(images)
    for place in range(16):
        assert torch.equal(codes[:, place], tiny.model.quantize.codes(features[..., place : place + 1])[:, 0, 0])
    mixed = torch.arange(16)[None]
    assert not torch.allclose(tiny.decode(mixed, (4, 4)), tiny.decode(mixed.flip(1), (4, 4)), atol=1e-3)


def test_other_images_and_other_sequences_are_refused(tiny):
    with pytest.raises(InputError, match="takes images of 8 x 8 pixels only, got 16"):
        tiny.encode(torch.zeros(1, 3, 16, 8))
    with pytest.raises(InputError, match="has 16 tokens an image, got 8 on a grid of"):
        tiny.decode(torch.zeros(1, 8, dtype=torch.int64), (2, 4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "huge"}, "encoder must be one of tiny, small, base, large, xl, xxl, got huge"),
        ({"decoder_queries": "pooled"}, "decoder_queries must be one of first, last_level"),
        ({"n_tokens": 128}, "n_tokens must be a power of 4 that divides the feature map's 256, got 128"),
        ({"n_tokens": 1024}, "n_tokens must be a power of 4"),
        ({"z_channels": 0}, "z_channels must be positive, got 0"),
    ],
)
def test_an_impossible_architecture_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        GigaTokConfig(**{"encoder": "small", "decoder": "base", **changes})
