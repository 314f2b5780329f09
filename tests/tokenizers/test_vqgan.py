"""The VQGAN is LlamaGen's: its names, its shapes, its numbers; recorded from the original (ce98ec4) in float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.errors import InputError
from codeprior.tokenizers.vqgan import PRESETS, VQGAN, VectorQuantizer, preset
from recorded import rebuild

GOLDEN = Path(__file__).parent.parent / "golden"
RECORDED = json.loads((GOLDEN / "llamagen_state_dicts.json").read_text())
PUBLISHED = {"VQ-16": 71_883_403, "VQ-8": 70_109_835}


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_has_the_names_the_shapes_and_the_parameters_of_the_original(name):
    with torch.device("meta"):
        model = VQGAN(preset(name))
    expected = {key: tuple(shape) for key, shape in RECORDED[name]["state_dict"].items()}
    del expected["quantize.codebook_used"]
    assert {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()} == expected
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name] == RECORDED[name]["params"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_computes_what_the_original_computed(name):
    recorded = np.load(GOLDEN / "llamagen_vq_io.npz")
    with torch.device("meta"):
        model = VQGAN(preset(name))
    rebuild(model)
    with torch.inference_mode():
        features = model.features(torch.from_numpy(recorded["image"]))
        codes = model.quantize.codes(features)
        decoded = model.decode(codes)
    # float32 convolutions of some 70 layers, summed in another order on another machine
    np.testing.assert_allclose(features.numpy(), recorded[f"{name}_features"], atol=1e-4)
    assert np.array_equal(codes.numpy().ravel(), recorded[f"{name}_indices"])
    np.testing.assert_allclose(decoded.numpy(), recorded[f"{name}_reconstruction"], atol=5e-4)


def test_every_preset_halves_the_image_as_often_as_its_name_says():
    for name, config in PRESETS.items():
        assert config.downsample == int(name.split("-")[1])
    model = VQGAN(preset("VQ-4-tiny", codebook_size=32, codebook_dim=4)).eval()
    with torch.inference_mode():
        codes = model.encode(torch.zeros(2, 3, 16, 24))
        assert codes.shape == (2, 4, 6)
        assert model.decode(codes).shape == (2, 3, 16, 24)


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="must be one of VQ-16, VQ-8, VQ-4-tiny, got VQ-32"):
        preset("VQ-32")


@pytest.fixture
def quantizer():
    torch.manual_seed(0)
    quantizer = VectorQuantizer(50, 8)
    with torch.no_grad():
        quantizer.embedding.weight.mul_(torch.rand(50, 1) + 0.5)
    return quantizer


def test_the_nearest_code_is_the_one_of_greatest_cosine(quantizer):
    z = torch.randn(2, 8, 3, 3)
    cosines = torch.einsum("bchw,vc->bhwv", z, torch.nn.functional.normalize(quantizer.embedding.weight, dim=1))
    assert torch.equal(quantizer.codes(z), cosines.argmax(dim=-1))


def test_lengths_decide_nothing(quantizer):
    z = torch.randn(1, 8, 4, 4)
    codes = quantizer.codes(z)
    assert torch.equal(quantizer.codes(7 * z), codes)
    vectors = quantizer.lookup(codes)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(1, 4, 4))
    assert torch.equal(quantizer.codes(vectors), codes)


def test_of_equal_codes_the_lowest_is_taken(quantizer):
    with torch.no_grad():
        quantizer.embedding.weight[30] = quantizer.embedding.weight[4]
    codes = quantizer.codes(quantizer.embedding.weight[30].detach().view(1, 8, 1, 1))
    assert codes.item() == 4
