import json
import shutil

import pytest
import torch

from codeprior.artifact import Workspace
from codeprior.checkpoint import CheckpointConfig, load_checkpoint, save_checkpoint
from codeprior.errors import InputError
from codeprior.model import Transformer, model_config
from codeprior.prior import CodebookPrior
from codeprior.tensors import read_tensors, save_tensors


def new_model(seed: int, vocab_size: int = 8) -> Transformer:
    config = model_config("tiny", vocab_size=vocab_size, n_classes=2, grid=(2, 2), dropout=0.0, token_dropout=0.0)
    return Transformer(config, torch.Generator().manual_seed(seed))


def write(folder, *, prior=None):
    model = new_model(0)
    config = CheckpointConfig(
        model=model.config,
        class_names=("cat", "dog"),
        image_size=8,
        codebook_size=8,
        codebook_digest="sha256:" + "a" * 64,
        tokenizer_digest="sha256:" + "b" * 64,
        objective="token" if prior is None else "cluster",
        prior_digest=None if prior is None else prior.digest,
    )
    with Workspace(folder, kind="checkpoint", settings={}, inputs={}) as workspace:
        workspace.finish(save_checkpoint(folder, model.state_dict(), config, prior), {})
    return model, config


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    model, config = write(tmp_path / "gpt")
    loaded = load_checkpoint(tmp_path / "gpt")
    assert loaded.config == config
    assert loaded.prior is None
    assert config.objective == "token"
    assert not loaded.model.training
    for (name, a), b in zip(model.named_parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    assert torch.equal(model.eval()(torch.tensor([0, 1]), tokens), loaded.model(torch.tensor([0, 1]), tokens))


def test_a_checkpoint_of_clusters_carries_its_prior(tmp_path):
    prior = CodebookPrior(torch.arange(16).numpy() // 2, "sha256:" + "a" * 64, "dcpe")
    _, config = write(tmp_path / "gpt", prior=prior)
    loaded = load_checkpoint(tmp_path / "gpt")
    assert config.objective == "cluster"
    assert loaded.prior is not None
    assert loaded.prior.digest == prior.digest


def test_a_checkpoint_from_before_there_were_several_dropouts_is_read(tmp_path):
    _, config = write(tmp_path / "gpt")
    record = json.loads((tmp_path / "gpt" / "config.json").read_text())
    new = ("token_dropout", "resid_dropout", "ffn_dropout", "drop_path", "output_size", "causal", "n_clusters")
    del record["objective"]
    record["model"] = {"dropout": 0.0} | {name: x for name, x in record["model"].items() if name not in new}
    folder = tmp_path / "old"
    with Workspace(folder, kind="checkpoint", settings={}, inputs={}) as workspace:
        (folder / "config.json").write_text(json.dumps(record))
        shutil.copy(tmp_path / "gpt" / "model.safetensors", folder)
        workspace.finish(["model.safetensors", "config.json"], {})
    assert load_checkpoint(folder).config == config


def test_missing_and_unexpected_weights_are_named(tmp_path):
    write(tmp_path / "gpt")
    tensors, _ = read_tensors(tmp_path / "gpt" / "model.safetensors")
    tensors["stray"] = tensors.pop("norm.weight")
    folder = tmp_path / "other"
    with Workspace(folder, kind="checkpoint", settings={}, inputs={}) as workspace:
        (folder / "config.json").write_text((tmp_path / "gpt" / "config.json").read_text())
        save_tensors(folder / "model.safetensors", tensors)
        workspace.finish(["model.safetensors", "config.json"], {})
    with pytest.raises(InputError, match=r"missing: norm.weight; unexpected: stray"):
        load_checkpoint(folder)


def test_a_config_of_something_else_is_refused(tmp_path):
    folder = tmp_path / "gpt"
    with Workspace(folder, kind="checkpoint", settings={}, inputs={}) as workspace:
        (folder / "config.json").write_text(json.dumps({"dim": 3}))
        workspace.finish(["config.json"], {})
    with pytest.raises(InputError, match="class_names"):
        load_checkpoint(folder)


def test_another_codebook_is_refused_with_both_digests(tmp_path):
    _, config = write(tmp_path / "gpt")
    config.verify("sha256:" + "a" * 64, "the tokenizer")
    with pytest.raises(InputError, match=r"aaaaaaaaaaaa.*cccccccccccc"):
        config.verify("sha256:" + "c" * 64, "the tokenizer")
