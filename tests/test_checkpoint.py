import json

import pytest
import torch

from codeprior.artifact import Workspace
from codeprior.checkpoint import (
    CheckpointConfig,
    load_checkpoint,
    load_state,
    read_tensors,
    save_checkpoint,
    save_state,
    save_tensors,
)
from codeprior.errors import InputError
from codeprior.losses import cross_entropy_nats
from codeprior.model import Transformer, model_config
from codeprior.prior import CodebookPrior


def new_model(seed: int, dim_name: str = "tiny", vocab_size: int = 8) -> Transformer:
    config = model_config(dim_name, vocab_size=vocab_size, n_classes=2, grid=(2, 2), dropout=0.0)
    return Transformer(config, torch.Generator().manual_seed(seed))


def new_optimizer(model: Transformer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


def steps(model: Transformer, optimizer: torch.optim.Optimizer, n: int) -> None:
    tokens = torch.arange(8).reshape(2, 4)
    for _ in range(n):
        optimizer.zero_grad()
        cross_entropy_nats(model(torch.tensor([0, 1]), tokens[:, :-1]), tokens).backward()
        optimizer.step()


def write(folder, *, prior=None):
    model = new_model(0)
    config = CheckpointConfig(
        model=model.config,
        class_names=("cat", "dog"),
        image_size=8,
        codebook_size=8,
        codebook_digest="sha256:" + "a" * 64,
        tokenizer_digest="sha256:" + "b" * 64,
        prior_digest=None if prior is None else prior.digest,
    )
    with Workspace(folder, kind="checkpoint", settings={}, inputs={}) as workspace:
        workspace.finish(save_checkpoint(folder, model, config, prior), {})
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


def test_a_continued_state_takes_the_same_steps(tmp_path):
    model = new_model(0)
    optimizer = new_optimizer(model)
    steps(model, optimizer, 3)
    save_state(tmp_path / "state.safetensors", model, optimizer, {"step": 3, "nats_sum": 0.1 + 0.2})
    steps(model, optimizer, 3)

    other = new_model(1)
    other_optimizer = new_optimizer(other)
    record = load_state(tmp_path / "state.safetensors", other, other_optimizer)
    assert record == {"step": 3, "nats_sum": 0.1 + 0.2}
    steps(other, other_optimizer, 3)
    for (name, a), b in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b[1]), name


def test_a_failed_write_leaves_the_previous_state(tmp_path):
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"record": "{}"})
    with pytest.raises(TypeError):
        save_tensors(path, {"a": torch.zeros(2)}, {"record": 3})  # metadata must be text
    tensors, _ = read_tensors(path)
    assert torch.equal(tensors["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_truncated_state_is_refused_in_one_line(tmp_path):
    model = new_model(0)
    path = tmp_path / "state.safetensors"
    save_state(path, model, new_optimizer(model), {})
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="complete"):
        load_state(path, model, new_optimizer(model))


def test_weights_of_another_model_are_refused_with_names(tmp_path):
    model = new_model(0)
    save_state(tmp_path / "state", model, new_optimizer(model), {})
    other = new_model(0, vocab_size=9)
    with pytest.raises(InputError, match=r"of another shape: output.weight, tok_embeddings.weight"):
        load_state(tmp_path / "state", other, new_optimizer(other))


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
