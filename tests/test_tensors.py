import subprocess
import sys

import pytest
import torch

from codeprior.errors import InputError
from codeprior.losses import cross_entropy_nats
from codeprior.model import Transformer, model_config
from codeprior.tensors import load_state, read_tensors, save_state, save_tensors


def new_model(seed: int, vocab_size: int = 8) -> Transformer:
    config = model_config("tiny", vocab_size=vocab_size, n_classes=2, grid=(2, 2), dropout=0.0, token_dropout=0.0)
    return Transformer(config, torch.Generator().manual_seed(seed))


def new_optimizer(model: Transformer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


def steps(model: Transformer, optimizer: torch.optim.Optimizer, n: int) -> None:
    tokens = torch.arange(8).reshape(2, 4)
    for _ in range(n):
        optimizer.zero_grad()
        cross_entropy_nats(model(torch.tensor([0, 1]), tokens[:, :-1]), tokens).backward()
        optimizer.step()


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


def test_models_of_shapes_alone_are_made_without_torchs_compiler():
    code = (
        "import sys\n"
        "from codeprior.model import Transformer, model_config\n"
        "from codeprior.tensors import on_meta\n"
        "from codeprior.tokenizers.gigatok import PRESETS as GIGATOK, GigaTok\n"
        "from codeprior.tokenizers.vqgan import PRESETS, VQGAN\n"
        "with on_meta():\n"
        "    models = [\n"
        "        VQGAN(PRESETS['VQ-16']), GigaTok(GIGATOK['GigaTok-S-S']),\n"
        "        Transformer(model_config('GPT-B', vocab_size=64, n_classes=10, grid=(4, 4))),\n"
        "    ]\n"
        "assert all(p.is_meta for model in models for p in model.parameters())\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
