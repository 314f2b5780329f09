"""Originals' files become folders of ours and files again, bit for bit; what is no such file is refused in one line."""

import argparse
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from codeprior.artifact import read_manifest
from codeprior.checkpoint import load_checkpoint
from codeprior.cli import main
from codeprior.codebook import Codebook
from codeprior.config import ConvertConfig, EncodeConfig, SampleConfig, TrainConfig
from codeprior.convert import convert
from codeprior.errors import InputError
from codeprior.generation.sample import sample
from codeprior.model import PRESETS, ModelConfig, Transformer, model_config
from codeprior.tensors import on_meta
from codeprior.tokenizers import load_tokenizer
from codeprior.tokenizers.gigatok import GigaTok, GigaTokConfig
from codeprior.tokenizers.vqgan import VQGAN, VQGANConfig, VQGANTokenizer, preset
from codeprior.training.loop import train
from recorded import rebuild, save_legacy, weight_named

VQ = VQGANConfig(32, (1, 2, 2), 2, 3, 16, codebook_size=32)
CNN = {"encoder_multipliers": (1, 2), "decoder_multipliers": (1, 2), "channels": 32, "image_size": 8}
GIGATOK = GigaTokConfig("tiny", "tiny", codebook_size=64, n_tokens=16, z_channels=32, **CNN)
SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 32, "grid": (4, 4), "ffn_multiple": 32}


def named_weights(model_class, config):
    """A state dict as an original would save it, with weights that follow from the names."""
    with on_meta():
        model = model_class(config)
    return {name: weight_named(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}


def vq_weights(model_class=VQGAN, config=VQ):
    return named_weights(model_class, config) | {"quantize.codebook_used": torch.arange(65536.0)}


def gpt_weights(**changes):
    return named_weights(Transformer, ModelConfig(**{"n_classes": 10, **SIZES, **changes}))


def converted(source, output, **settings):
    return convert(ConvertConfig(source=source, output=output, **settings))


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


ROUND_TRIPS = {
    "vqgan": (vq_weights, {}),
    "gigatok": (lambda: vq_weights(GigaTok, GIGATOK), {}),
    "class": (gpt_weights, {"image_size": 64, "n_heads": 4}),
    "caption": (lambda: gpt_weights(n_classes=0, caption_dim=8), {"image_size": 64, "n_heads": 4}),
    "learned": (lambda: gpt_weights(positions="learned"), {"n_heads": 4}),
    "learned, normed": (lambda: gpt_weights(positions="learned", qk_norm=True), {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ROUND_TRIPS)
def test_what_goes_into_a_folder_comes_out_bit_for_bit(tmp_path, name, dtype):
    make, settings = ROUND_TRIPS[name]
    weights = {name: tensor.to(dtype) for name, tensor in make().items()}
    torch.save({"model": weights, "optimizer": {"state": {0: torch.zeros(3)}}, "steps": 7}, tmp_path / "original.pt")
    converted(tmp_path / "original.pt", tmp_path / "folder", **settings)
    converted(tmp_path / "folder", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == {"model"}
    assert_identical(back["model"], weights)
    converted(tmp_path / "folder", tmp_path / "bare.pth", bare=True)
    assert_identical(torch.load(tmp_path / "bare.pth", weights_only=True), weights)
    converted(tmp_path / "folder", tmp_path / "back.safetensors")
    assert_identical(load_file(tmp_path / "back.safetensors"), weights)
    again = converted(tmp_path / "bare.pth", tmp_path / "again", **settings)
    assert again["digest"] == read_manifest(tmp_path / "folder").digest


def test_a_converted_tokenizer_that_is_saved_again_is_the_same(tmp_path):
    torch.save({"model": vq_weights()}, tmp_path / "vq.pt")
    digest = converted(tmp_path / "vq.pt", tmp_path / "vq")["digest"]
    assert load_tokenizer(tmp_path / "vq").save_pretrained(tmp_path / "again").digest == digest


def test_a_yaml_says_what_leaves_no_trace_in_the_weights(tmp_path):
    torch.save({"model": vq_weights(GigaTok, GIGATOK)}, tmp_path / "original.pt")
    arguments = {"model_size": "tiny", "codebook_size": 64, "num_latent_tokens": 16, "z_channels": 32}
    arguments |= {"encoder_ch_mult": [1, 2], "decoder_ch_mult": [1, 2], "adaptive_gn": True, "d2s_up": True}
    arguments |= {"use_attn": False, "distill_depth": 3, "last_level_2d_query_init": True, "codebook_l2_norm": False}

    def written(**changes):
        model = {"model_cls": "VQVitModelPlus", "init_args": arguments | changes}
        (tmp_path / "VQ.yaml").write_text(yaml.safe_dump({"model": model, "trainer": {"distill_loss": True}}))
        return tmp_path / "VQ.yaml"

    converted(tmp_path / "original.pt", tmp_path / "tokenizer", yaml=written(multi_level_query_init=True))
    config = load_tokenizer(tmp_path / "tokenizer").model.config
    assert config == replace(GIGATOK, decoder_queries="last_level", normalize=False)
    with pytest.raises(InputError, match=r"has of another shape quantize\.embedding\.weight"):
        converted(tmp_path / "original.pt", tmp_path / "other", yaml=written(codebook_size=65))
    torch.save({"model": vq_weights()}, tmp_path / "vq.pt")
    with pytest.raises(InputError, match="is a vqgan tokenizer, which no --yaml describes"):
        converted(tmp_path / "vq.pt", tmp_path / "other", yaml=written())


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", ""])
@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_a_transformer_is_found_in_every_wrapper_and_stray_caches_are_left_out(tmp_path, wrapper, save):
    weights = gpt_weights()
    stray = {f"layers.{i}.attention.kv_cache.{k}_cache": torch.zeros(2, 4, 24, 16) for i in range(2) for k in "kv"}
    tree = {f"module._orig_mod.{name}": tensor for name, tensor in {**weights, **stray}.items()}
    save({wrapper: tree} if wrapper else tree, tmp_path / "gpt.pt")
    result = converted(tmp_path / "gpt.pt", tmp_path / "gpt", image_size=64, n_heads=4)
    assert result["taken from"] == (wrapper or "the bare file")
    assert "layers.1.attention.kv_cache.v_cache" in result["left out"]
    model = load_checkpoint(tmp_path / "gpt").model
    assert_identical(dict(model.state_dict()), weights)
    assert (model.config.n_classes, model.config.null_class, model.config.grid) == (10, True, (4, 4))


def test_the_folder_of_a_training_run_with_fsdp_is_read_whole(tmp_path):
    (tmp_path / "0050000").mkdir()
    torch.save(gpt_weights(), tmp_path / "0050000" / "consolidated.pth")
    for rank in range(2):
        torch.save({"state": {}}, tmp_path / "0050000" / f"optimizer.{rank:05d}-of-00002.pth")
    (tmp_path / "0050000" / "resume_step.txt").write_text("50000")
    assert converted(tmp_path / "0050000", tmp_path / "gpt", image_size=64, n_heads=4)["taken from"] == "the bare file"


def test_of_a_training_run_the_averaged_weights_come_along(tmp_path):
    weights = gpt_weights()
    averaged = {name: tensor / 2 for name, tensor in weights.items()}
    arguments = argparse.Namespace(image_size=64, downsample_size=16, num_classes=10, gpt_model="GPT-B")
    torch.save({"model": weights, "ema": averaged, "steps": 3, "args": arguments}, tmp_path / "0000003.pt")
    converted(tmp_path / "0000003.pt", tmp_path / "gpt", n_heads=4)
    assert torch.equal(load_checkpoint(tmp_path / "gpt", average=True).model.norm.weight, averaged["norm.weight"])
    assert torch.equal(load_checkpoint(tmp_path / "gpt").model.norm.weight, weights["norm.weight"])
    converted(tmp_path / "gpt", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert_identical(back["ema"], averaged)
    taken = converted(tmp_path / "0000003.pt", tmp_path / "ema", n_heads=4, wrapper="ema")
    assert (taken["taken from"], taken["left out"]) == ("ema", "model")


def test_of_a_tokenizers_training_run_the_average_is_taken_as_the_authors_do(tmp_path):
    weights = vq_weights()
    averaged = {name: tensor / 2 for name, tensor in weights.items()}
    other = {"discriminator": {"main.0.weight": torch.zeros(2)}, "steps": 3}
    torch.save({"model": weights, "ema": averaged, **other}, tmp_path / "vq.pt")
    result = converted(tmp_path / "vq.pt", tmp_path / "vq")
    assert (result["taken from"], result["left out"]) == ("ema", "discriminator, model")
    tokenizer = load_tokenizer(tmp_path / "vq")
    assert torch.equal(tokenizer.model.quant_conv.weight, averaged["quant_conv.weight"])
    assert result["assumed: codes are compared"] == "normalised"
    assert (
        tokenizer.codebook.digest == Codebook.load(tmp_path / "vq.pt").digest == Codebook.load(tmp_path / "vq").digest
    )


def test_a_released_file_says_its_own_name(tmp_path):
    """Names and shapes of every published size, without their gigabytes: one row of each tensor is enough to tell."""
    from codeprior.originals import Given, recognise
    from codeprior.pickles import Storage, StoredTensor
    from codeprior.weights import Checkpoint, Scope

    def on_paper(model):
        storage = Storage(tmp_path / "none", "float32", 0, lambda: 0)
        return {
            name: StoredTensor(storage, 0, tuple(tensor.shape), tensor.stride())
            for name, tensor in model.state_dict().items()
        }

    for name in PRESETS:
        if name.startswith("GPT"):
            with on_meta():
                model = Transformer(model_config(name, vocab_size=16384, n_classes=1000, grid=(24, 24)))
            found = recognise(Checkpoint("c2i.pt", (Scope("model", on_paper(model)),)), Given(image_size=384))
            assert found.what == f"class-conditional transformer, {name}"
            assert (found.config.grid, found.config.n_classes) == ((24, 24), 1000)
    for name in ("VQ-16", "VQ-8"):
        with on_meta():
            tensors = on_paper(VQGAN(preset(name)))
        assert recognise(Checkpoint("vq.pt", (Scope("model", tensors),)), Given()).config == preset(name)


@pytest.fixture(scope="module")
def originals(tiny, tmp_path_factory):
    """A transformer of ours, and in an original's file: as LlamaGen would have written it."""
    folder = tmp_path_factory.mktemp("originals")
    train(TrainConfig(codes=tiny / "codes", output=folder / "gpt", steps=2, batch_size=16, device="cpu"))
    converted(folder / "gpt", folder / "gpt.pt")
    return folder


def test_converted_files_sample_as_what_they_were_made_from(tiny, originals, tmp_path):
    flags = {"tokenizer": tiny / "tokenizer", "n_heads": 4}
    result = converted(originals / "gpt.pt", tmp_path / "gpt", **flags)
    assert (result["grid"], result["vocabulary"], result["warnings"]) == ("4 x 4", 32, [])
    given = {"tokenizer": tiny / "tokenizer", "n_images": 12, "device": "cpu"}
    for name, checkpoint in {"ours": originals / "gpt", "theirs": tmp_path / "gpt"}.items():
        sample(SampleConfig(checkpoint=checkpoint, output=tmp_path / name, **given))
    ours, theirs = (np.load(tmp_path / name / "samples.npz")["arr_0"] for name in ("ours", "theirs"))
    assert np.array_equal(ours, theirs)


def test_a_converted_tokenizer_encodes_as_what_it_was_made_from(originals, tmp_path):
    from codeprior.codes import CodeStore
    from codeprior.encoding import encode

    weights = vq_weights()
    VQGANTokenizer(model_of(weights), 16).save_pretrained(tmp_path / "ours")
    torch.save({"model": weights}, tmp_path / "vq.pt")
    converted(tmp_path / "vq.pt", tmp_path / "theirs", image_size=16)
    for name in ("ours", "theirs"):
        config = EncodeConfig(
            data="digits:heldout", tokenizer=tmp_path / name, output=tmp_path / f"{name}-codes", device="cpu"
        )
        encode(config)
    ours, theirs = (CodeStore.open(tmp_path / f"{name}-codes") for name in ("ours", "theirs"))
    assert np.array_equal(ours.codes, theirs.codes)
    assert ours.codebook_digest == theirs.codebook_digest


def model_of(weights):
    with on_meta():
        model = VQGAN(VQ)
    model.load_state_dict({name: weights[name] for name in model.state_dict()}, assign=True)
    return model.eval()


def test_an_unsigned_transformer_warns_and_is_checked_by_what_is_known(tiny, originals, tmp_path):
    result = converted(originals / "gpt.pt", tmp_path / "gpt", image_size=64, n_heads=4)
    assert "nothing says which tokenizer its codes belong to" in result["warnings"][0]
    checkpoint = load_checkpoint(tmp_path / "gpt")
    assert checkpoint.config.codebook_digest is None
    checkpoint.config.verify("sha256:0", "the tokenizer", 32)
    with pytest.raises(InputError, match="was trained on 32 codes, the tokenizer has 64"):
        checkpoint.config.verify("sha256:0", "the tokenizer", 64)
    torch.save({"model": gpt_weights(vocab_size=48)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"has 48 tokens, .*tokenizer has 32 codes"):
        converted(tmp_path / "other.pt", tmp_path / "other", tokenizer=tiny / "tokenizer", n_heads=4)


def test_iars_mapping_renumbers_the_codes_and_undone_gives_the_file_back(tmp_path):
    weights = vq_weights()
    permutation = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    mapping = torch.stack([torch.arange(32), permutation]).flatten()[32:]  # a view, as IAR's file is one
    torch.save(mapping, tmp_path / "mapping.pt")
    torch.save({"model": weights}, tmp_path / "vq.pt")
    converted(tmp_path / "vq.pt", tmp_path / "iar.pt", mapping=tmp_path / "mapping.pt")
    book = "quantize.embedding.weight"
    new = torch.load(tmp_path / "iar.pt", weights_only=True)["model"][book]
    assert torch.equal(new[permutation], weights[book])
    converted(tmp_path / "iar.pt", tmp_path / "back", undo_mapping=tmp_path / "mapping.pt")
    assert torch.equal(load_file(tmp_path / "back" / "model.safetensors")[book], weights[book])
    converted(tmp_path / "iar.pt", tmp_path / "iar", image_size=16)
    converted(tmp_path / "vq.pt", tmp_path / "plain", image_size=16)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain, iar = load_tokenizer(tmp_path / "plain"), load_tokenizer(tmp_path / "iar")
    assert torch.equal(permutation[plain.encode(images)], iar.encode(images))


def test_a_transformer_of_renumbered_codes_says_the_same_of_the_same_codes(tmp_path):
    weights = gpt_weights()
    mapping = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    torch.save(mapping, tmp_path / "mapping.pt")
    torch.save({"model": weights}, tmp_path / "gpt.pt")
    for name, flags in {"old": {}, "new": {"mapping": tmp_path / "mapping.pt"}}.items():
        converted(tmp_path / "gpt.pt", tmp_path / name, image_size=64, n_heads=4, **flags)
    old, new = (load_checkpoint(tmp_path / name).model for name in ("old", "new"))
    tokens = torch.arange(15)[None]
    with torch.inference_mode():
        torch.testing.assert_close(
            new(torch.tensor([3]), mapping[tokens])[..., mapping], old(torch.tensor([3]), tokens)
        )


@pytest.mark.parametrize(
    "mapping", [torch.zeros(32, dtype=torch.int64), torch.arange(32.0), torch.arange(32).view(2, 16)]
)
def test_what_is_no_mapping_is_refused(tmp_path, mapping):
    torch.save(mapping, tmp_path / "mapping.pt")
    torch.save({"model": vq_weights()}, tmp_path / "vq.pt")
    with pytest.raises(InputError, match="must hold one permutation of codes"):
        converted(tmp_path / "vq.pt", tmp_path / "iar.pt", mapping=tmp_path / "mapping.pt")
    torch.save(torch.arange(33), tmp_path / "mapping.pt")
    with pytest.raises(InputError, match="the mapping is of 33 codes, the model has 32"):
        converted(tmp_path / "vq.pt", tmp_path / "iar.pt", mapping=tmp_path / "mapping.pt")


def without(weights, name):
    return {key: tensor for key, tensor in weights.items() if key != name}


WRONG = {
    "a missing tensor": (lambda: without(vq_weights(), "quant_conv.bias"), {}, "lacks quant_conv.bias"),
    "half a tokenizer": (
        lambda: {name: tensor for name, tensor in vq_weights().items() if not name.startswith("encoder.")},
        {},
        r"convert: \S+: not the whole weights of LlamaGen's tokenizer: 'encoder.conv_in.weight' is missing",
    ),
    "half of GigaTok": (
        lambda: without(vq_weights(GigaTok, GIGATOK), "encoder.conv_in.weight"),
        {},
        "not the whole weights of GigaTok's 1-D tokenizer",
    ),
    "unknown tensors": (
        lambda: vq_weights() | {"quantize.embedding_second": torch.zeros(4, 8)},
        {},
        "has, unknown here, quantize.embedding_second",
    ),
    "no grid": (gpt_weights, {"n_heads": 4}, r"convert: \S+ does not tell its grid; give --image-size"),
    "half a token": (gpt_weights, {"n_heads": 4, "image_size": 72}, r"convert: image_size must be a multiple of 16 "),
    "half a code": (vq_weights, {"image_size": 18}, r"convert: image_size must be a multiple of 4, got 18"),
    "odd heads": (gpt_weights, {"image_size": 64, "n_heads": 7}, r"convert: dim must be a multiple of 4 n_heads"),
    "no heads": (gpt_weights, {"image_size": 64}, r"convert: \S+ has 2 layers of width 64, no published size; "),
    "another width": (
        lambda: gpt_weights() | {"layers.1.feed_forward.w2.weight": torch.zeros(64, 7)},
        {"image_size": 64, "n_heads": 4},
        "has of another shape layers.1.feed_forward.w2.weight",
    ),
    "embeddings alone": (
        lambda: {"tok_embeddings.weight": torch.zeros(8, 64)},
        {"image_size": 64, "n_heads": 4},
        "no whole transformer: 'layers.0.attention.wqkv.weight' is missing",
    ),
    "no layers": (
        lambda: without(gpt_weights(), "layers.0.feed_forward.w1.weight"),
        {"image_size": 64, "n_heads": 4},
        "no whole transformer: 'layers.0.feed_forward.w1.weight' is missing",
    ),
    "adaptive norms": (
        lambda: gpt_weights() | {"layers.0.adaLN_modulation.1.weight": torch.zeros(4, 4)},
        {"image_size": 64, "n_heads": 4},
        "GigaTok's adaptive norms .* not supported",
    ),
    "shared keys": (
        lambda: gpt_weights() | {"layers.0.attention.wqkv.weight": torch.zeros(128, 64)},
        {"image_size": 64, "n_heads": 4},
        "fewer heads for keys than for queries",
    ),
    "other classes": (gpt_weights, {"image_size": 64, "n_heads": 4, "n_classes": 7}, "has 11 class vectors"),
    "taming": (
        lambda: {"quantize.embedding.weight": torch.zeros(4, 8), "encoder.down.0.block.0.norm1.weight": torch.ones(2)},
        {},
        "by its names it is taming, whose codebook `extract` reads; those that can are LlamaGen's",
    ),
    "anything": (lambda: {"fc.weight": torch.zeros(2, 2)}, {}, "its names are unknown here"),
    "no such wrapper": (vq_weights, {"wrapper": "ema"}, "has no 'ema' around its weights; it has model$"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_converted_is_refused_in_one_line_and_nothing_is_written(tmp_path, capsys, name):
    make, settings, message = WRONG[name]
    torch.save({"model": make()}, tmp_path / "original.pt")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(tmp_path / "original.pt"), "--output", str(tmp_path / "folder"), *flags])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said
    assert not (tmp_path / "folder").exists()


def test_a_truncated_file_and_a_hostile_pickle_are_refused_in_one_line(tmp_path):
    torch.save({"model": vq_weights()}, tmp_path / "vq.pt")
    whole = (tmp_path / "vq.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is cut off"):
        converted(tmp_path / "cut.pt", tmp_path / "folder")

    class Hostile:
        def __reduce__(self):
            return eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"model": vq_weights(), "x": Hostile()}, tmp_path / "hostile.pt")
    with pytest.raises(InputError, match=r"calls builtins.eval when it is loaded; nothing was run"):
        converted(tmp_path / "hostile.pt", tmp_path / "folder")
    assert not (tmp_path / "ran").exists()


def test_what_exists_is_not_overwritten_unasked(tmp_path):
    torch.save({"model": vq_weights()}, tmp_path / "vq.pt")
    converted(tmp_path / "vq.pt", tmp_path / "folder")
    before = read_manifest(tmp_path / "folder").created
    assert converted(tmp_path / "vq.pt", tmp_path / "folder")["digest"]  # the same again: nothing to do
    assert read_manifest(tmp_path / "folder").created == before
    converted(tmp_path / "folder", tmp_path / "back.pt")
    with pytest.raises(InputError, match=r"back\.pt exists; choose another --output"):
        converted(tmp_path / "folder", tmp_path / "back.pt")
    converted(tmp_path / "folder", tmp_path / "back.pt", overwrite=True)


def test_models_that_no_original_has_stay_folders(tiny, tmp_path):
    with pytest.raises(InputError, match="normalises in 8 groups, the originals in 32: it stays a folder"):
        converted(tiny / "tokenizer", tmp_path / "vq.pt")
    config = {"codes": tiny / "codes", "prior": tiny / "prior.safetensors", "steps": 2, "batch_size": 16}
    train(TrainConfig(output=tmp_path / "factorised", objective="factorised", device="cpu", **config))
    with pytest.raises(InputError, match="objective factorised has layers that no original has"):
        converted(tmp_path / "factorised", tmp_path / "gpt.pt")
    train(TrainConfig(output=tmp_path / "cluster", objective="cluster", device="cpu", **config))
    assert "its tokens are clusters" in converted(tmp_path / "cluster", tmp_path / "gpt.pt")["warnings"][0]
    torch.save(torch.arange(16), tmp_path / "mapping.pt")
    with pytest.raises(InputError, match="a model with a prior cannot be renumbered"):
        converted(tmp_path / "cluster", tmp_path / "renumbered", mapping=tmp_path / "mapping.pt")
    with pytest.raises(InputError, match="holds codes; only tokenizers and checkpoints are converted"):
        converted(tiny / "codes", tmp_path / "codes.pt")


def test_a_folder_of_ours_is_not_converted_into_another(tmp_path):
    torch.save({"model": vq_weights()}, tmp_path / "vq.pt")
    converted(tmp_path / "vq.pt", tmp_path / "folder")
    with pytest.raises(InputError, match=r"is a folder of ours already; give an --output that ends in \.pt"):
        converted(tmp_path / "folder", tmp_path / "other")


def test_what_the_written_file_will_not_tell_is_said(tmp_path):
    with on_meta():
        model = VQGAN(replace(VQ, normalize=False))
    VQGANTokenizer(rebuild(model), 16).save_pretrained(tmp_path / "raw")
    told = converted(tmp_path / "raw", tmp_path / "raw.pt")["warnings"]
    assert told == ["the file alone does not tell, and must be told: normalize = False"]


def test_buffers_are_no_parameters(tmp_path):
    torch.save(gpt_weights(n_classes=0, caption_dim=8), tmp_path / "t2i.pt")
    result = converted(tmp_path / "t2i.pt", tmp_path / "t2i", image_size=64, n_heads=4)
    model = load_checkpoint(tmp_path / "t2i").model
    assert result["n_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    torch.save(vq_weights(), tmp_path / "vq.pt")
    result = converted(tmp_path / "vq.pt", tmp_path / "vq")
    assert result["n_parameters"] == load_tokenizer(tmp_path / "vq").facts()["n_parameters"]


def test_llamagens_own_class_takes_the_file_strictly(tmp_path):
    """Its strict loading wants a buffer of training that our tokenizers do without."""
    VQGANTokenizer(model_of(vq_weights()), 16).save_pretrained(tmp_path / "ours")
    converted(tmp_path / "ours", tmp_path / "vq.pt")
    back = torch.load(tmp_path / "vq.pt", weights_only=True)["model"]
    assert torch.equal(back["quantize.codebook_used"], torch.zeros(65536))
    assert back.keys() == vq_weights().keys()


def test_a_safetensors_export_is_read_too(tmp_path):
    save_file(gpt_weights(positions="learned", qk_norm=True), tmp_path / "gpt.safetensors")
    result = converted(tmp_path / "gpt.safetensors", tmp_path / "gpt")
    assert result["recognised"] == "class-conditional transformer, dim 64, learned positions"
    assert SimpleNamespace(**load_checkpoint(tmp_path / "gpt").config.model.__dict__).n_heads == 4


def test_a_transformer_with_learned_positions_trained_here_is_gigatoks_file(tiny, tmp_path):
    config = {"codes": tiny / "codes", "steps": 2, "batch_size": 16, "device": "cpu"}
    train(TrainConfig(output=tmp_path / "gpt", positions="learned", qk_norm=True, **config))
    sample(
        SampleConfig(
            checkpoint=tmp_path / "gpt", tokenizer=tiny / "tokenizer", output=tmp_path / "s", n_images=4, device="cpu"
        )
    )
    converted(tmp_path / "gpt", tmp_path / "gpt.pt")
    weights = torch.load(tmp_path / "gpt.pt", weights_only=True)["model"]
    assert weights["positional_embedding"].shape == (17, 128)
    assert weights["layers.3.attention.k_norm.bias"].shape == (32,)


def test_the_report_says_what_was_converted(tmp_path):
    torch.save({"model": vq_weights()}, tmp_path / "vq.pt")
    converted(tmp_path / "vq.pt", tmp_path / "runs" / "vq")
    main(["report", str(tmp_path / "runs")])
    assert ">convert<" in (tmp_path / "runs" / "report.html").read_text().replace("\n", "").replace(" ", "")
