"""GigaTok's YAML and weights are read as they are, and a tokenizer of ours holds them."""

from dataclasses import asdict, replace

import pytest
import torch
import yaml
from safetensors.torch import save_file

from codeprior.artifact import Workspace, write_json
from codeprior.errors import InputError
from codeprior.tokenizers import load_tokenizer
from codeprior.tokenizers.folder import CONFIG, WEIGHTS
from codeprior.tokenizers.gigatok import PRESETS, GigaTok, GigaTokConfig, GigaTokTokenizer
from codeprior.tokenizers.gigatok_files import read_yaml
from recorded import weight_named

CNN = {"encoder_multipliers": (1, 2), "decoder_multipliers": (1, 2), "channels": 32, "image_size": 8}
TINY = GigaTokConfig("tiny", "tiny", codebook_size=64, n_tokens=16, z_channels=32, **CNN)

# What the YAML of every released 1-D tokenizer says; the sizes differ.
RELEASED = """
model:
  model_cls: VQVitModelPlus
  init_args:
    codebook_size: 16384
    codebook_embed_dim: 8
    codebook_l2_norm: True
    codebook_show_usage: True
    commit_loss_beta: 0.25
    entropy_loss_ratio: 0.0
    encoder_ch_mult: [1, 1, 2, 2, 4]
    decoder_ch_mult: [1, 1, 2, 2, 4]
    model_size: null
    encoder_size: small
    decoder_size: base
    num_latent_tokens: 256
    z_channels: 256
    dropout_p: 0.0
    multi_level_query_init: True
    last_level_2d_query_init: False
    multi_level_2d_query_init: False
    adaptive_gn: True
    d2s_up: True
    rot: True
    use_attn: False
    fea_rec_loss_type: mse
    fea_rec_loss_weight: 1.0
    distill_depth: 3
  causal_settings:
    causal_type: null
trainer:
  distill_loss: True
"""


def written(folder, arguments=None, trainer=None, model_class="VQVitModelPlus"):
    record = yaml.safe_load(RELEASED)
    record["model"]["model_cls"] = model_class
    record["model"]["init_args"].update(arguments or {})
    record["trainer"].update(trainer or {})
    path = folder / "VQ.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def original_weights(config):
    """A state dict as in GigaTok's files: with the buffer of training, weights that follow from the names."""
    with torch.device("meta"):
        model = GigaTok(config)
    weights = {name: weight_named(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    return {**weights, "quantize.codebook_used": torch.zeros(65536)}


@pytest.mark.parametrize(
    ("encoder", "decoder", "preset"),
    [
        ("small", "small", "GigaTok-S-S"),
        ("small", "base", "GigaTok-S-B"),
        ("base", "large", "GigaTok-B-L"),
        ("xl", "xxl", "GigaTok-XL-XXL"),
    ],
)
def test_a_released_yaml_is_the_preset(tmp_path, encoder, decoder, preset):
    assert read_yaml(written(tmp_path, {"encoder_size": encoder, "decoder_size": decoder})) == PRESETS[preset]


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        ({"encoder_size": None, "decoder_size": None, "model_size": "large"}, {"encoder": "large", "decoder": "large"}),
        ({"codebook_size": 1024, "codebook_embed_dim": 16}, {"codebook_size": 1024, "codebook_dim": 16}),
        ({"codebook_l2_norm": False}, {"normalize": False}),
        ({"num_latent_tokens": 64, "z_channels": 128}, {"n_tokens": 64, "z_channels": 128}),
        ({"decoder_ch_mult": [1, 2, 2, 4]}, {"decoder_multipliers": (1, 2, 2, 4)}),
        ({"multi_level_query_init": False}, {"encoder_queries": "mean"}),
        ({"multi_level_query_init": False, "learnable_1d_query_init": True}, {"encoder_queries": "learned"}),
        ({"last_level_2d_query_init": True}, {"decoder_queries": "last_level"}),
        ({"multi_level_2d_query_init": True}, {"decoder_queries": "multi_level"}),
        ({"learnable_2d_query_init": True}, {"decoder_queries": "learned"}),
        ({"use_qk_norm": True, "use_attn": True}, {"qk_norm": True, "attention": True}),
        ({"adaptive_gn": False, "d2s_up": False}, {"adaptive_norm": False, "depth_to_space": False}),
        ({"distill_depth": None}, {"distill_width": None}),
        ({"out_inner_dim": 512}, {"distill_width": 512}),
        ({"rot": False, "commit_loss_beta": 1.0}, {}),
    ],
)
def test_every_field_of_a_yaml_is_honoured(tmp_path, arguments, changes):
    assert read_yaml(written(tmp_path, arguments)) == replace(PRESETS["GigaTok-S-B"], **changes)


def test_the_teacher_decides_the_width_of_the_unused_head(tmp_path):
    config = read_yaml(written(tmp_path, trainer={"distill_model": "dinov2-vit-l"}))
    assert config.distill_width == 1024
    with pytest.raises(InputError, match=r"distill_model must be one of dinov2-vit-s, .*, got dinov3"):
        read_yaml(written(tmp_path, trainer={"distill_model": "dinov3"}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"simvq": True}, "init_args.simvq: True is not supported"),
        ({"use_rope": True}, "init_args.use_rope: True is not supported"),
        ({"learnable_1d_query_init": True}, "of multi_level_query_init and learnable_1d_query_init at most one"),
        ({"encoder_size": None}, "encoder must be one of tiny, .*, got None"),
        ({"codebook_size": "many"}, "is not a GigaTok configuration"),
    ],
)
def test_what_a_yaml_asks_for_is_had_or_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        read_yaml(written(tmp_path, arguments))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="must be VQVitModelPlus, a 1-D tokenizer, got VQVitModel2DPlus"):
        read_yaml(written(tmp_path, model_class="VQVitModel2DPlus"))
    path = tmp_path / "other.yaml"
    with pytest.raises(InputError, match=r"cannot read .*: No such file"):
        read_yaml(path)
    for text, message in (("a: [", "is not a YAML file"), ("- 1", "is not a GigaTok"), ("a: 1", "is not a GigaTok")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_yaml(path)


@pytest.mark.parametrize(
    "config",
    [
        *PRESETS.values(),
        TINY,
        replace(TINY, attention=True, qk_norm=True, distill_width=None, encoder_queries="learned"),
        replace(TINY, adaptive_norm=False, depth_to_space=False, decoder_queries="learned", codebook_dim=4),
    ],
)
def test_weights_tell_their_architecture(config):
    with torch.device("meta"):
        model = GigaTok(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert GigaTokTokenizer.identify(shapes) == config


def folder_of(path, weights, config):
    with Workspace(path, kind="tokenizer", settings={}, inputs={}) as workspace:
        write_json(path / CONFIG, {"family": "gigatok", **asdict(TINY), **config})
        save_file(weights, path / WEIGHTS)
        workspace.finish([CONFIG, WEIGHTS], {})
    return path


def test_weights_load_strictly(tmp_path):
    weights = original_weights(TINY)
    tokenizer = load_tokenizer(folder_of(tmp_path / "whole", weights, {}))
    assert torch.equal(tokenizer.model.quantize.embedding.weight, weights["quantize.embedding.weight"])
    lacking = {name: tensor for name, tensor in weights.items() if name != "quant_conv.bias"}
    with pytest.raises(InputError, match=r"does not fit its model \(missing: quant_conv.bias\)"):
        load_tokenizer(folder_of(tmp_path / "lacking", lacking, {}))
    with pytest.raises(InputError, match=r"does not fit its model \(unexpected: extra\)"):
        load_tokenizer(folder_of(tmp_path / "more", {**weights, "extra": torch.zeros(1)}, {}))


def test_a_file_without_the_head_of_training_computes_the_same(tmp_path):
    weights = original_weights(TINY)
    bare = {name: tensor for name, tensor in weights.items() if "distill_mlp" not in name}
    whole = load_tokenizer(folder_of(tmp_path / "whole", weights, {}))
    headless = load_tokenizer(folder_of(tmp_path / "headless", bare, {"distill_width": None}))
    codes = torch.arange(16)[None]
    # float32 sums in an order that depends on where in memory the weights lie
    torch.testing.assert_close(headless.decode(codes, (4, 4)), whole.decode(codes, (4, 4)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"family": "dalle"}, "family must be one of gigatok, vqgan, got dalle"),
        ({"more": 1}, "must hold family, image_size, adaptive_norm, "),
        ({"decoder": "small"}, "missing: s1to2decoder.transformer.4"),
        ({"codebook_size": 65}, "of another shape: quantize.embedding.weight"),
    ],
)
def test_a_folder_whose_configuration_does_not_fit_is_refused(tmp_path, config, message):
    with torch.device("meta"):
        names = {name: tensor.shape for name, tensor in GigaTok(TINY).state_dict().items()}
    folder = folder_of(tmp_path / "tokenizer", {name: torch.zeros(shape) for name, shape in names.items()}, config)
    with pytest.raises(InputError, match=message):
        load_tokenizer(folder)
