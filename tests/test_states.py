"""States: written whole or not at all, the newest few kept, damage named."""

import pytest
import torch

from codeprior.errors import InputError
from codeprior.losses import cross_entropy_nats
from codeprior.model import Transformer, model_config
from codeprior.states import States, state_tensors


def new_model(seed: int, vocab_size: int = 8) -> Transformer:
    none = {"dropout": 0.0, "token_dropout": 0.0}
    config = model_config("tiny", vocab_size=vocab_size, n_classes=2, grid=(2, 2), **none)
    return Transformer(config, torch.Generator().manual_seed(seed))


def take_steps(model: Transformer, optimizer: torch.optim.Optimizer, n: int) -> None:
    tokens = torch.arange(8).reshape(2, 4)
    for _ in range(n):
        optimizer.zero_grad()
        cross_entropy_nats(model(torch.tensor([0, 1]), tokens[:, :-1]), tokens).backward()
        optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_a_continued_state_takes_the_same_steps(tmp_path, fused):
    states, models, optimizers = States(tmp_path), [new_model(0), new_model(1)], []
    for model in models:
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused))
    take_steps(models[0], optimizers[0], 3)
    states.save(3, state_tensors(models[0], optimizers[0]), {"step": 3, "nats_sum": 0.1 + 0.2})
    take_steps(models[0], optimizers[0], 3)
    record = states.load(state_tensors(models[1], optimizers[1]))
    assert record == {"step": 3, "nats_sum": 0.1 + 0.2}
    take_steps(models[1], optimizers[1], 3)
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_that_was_given_its_first_moments_steps_like_a_new_one(fused):
    models = [new_model(0), new_model(0)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused) for model in models]
    state_tensors(models[0], optimizers[0])
    for model, optimizer in zip(models, optimizers, strict=True):
        take_steps(model, optimizer, 3)
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(a, b)


def test_before_the_first_state_there_is_nothing_to_continue(tmp_path):
    assert States(tmp_path).load({}) is None


def test_the_newest_few_are_kept(tmp_path):
    states = States(tmp_path, keep=2)
    for step in (9, 10, 100):
        states.save(step, {"a": torch.tensor(float(step))}, {"step": step})
    assert [path.name for path in states.whole] == ["state-00000010", "state-00000100"]
    tensor = torch.tensor(0.0)
    assert states.load({"a": tensor}) == {"step": 100}
    assert tensor == 100
    states.clear()
    assert list(tmp_path.iterdir()) == []


def test_a_state_that_cannot_be_written_leaves_the_one_before(tmp_path):
    states = States(tmp_path)
    states.save(1, {"a": torch.ones(2)}, {})
    with pytest.raises(TypeError):
        states.save(2, {"a": torch.ones(2)}, {"record": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001"]


@pytest.mark.parametrize("damage", ["cut", "gone", "no record"])
def test_damage_is_named_with_what_to_do(tmp_path, damage):
    states = States(tmp_path, keep=2)
    for step in (1, 2):
        states.save(step, {"a": torch.ones(100)}, {})
    folder = tmp_path / "state-00000002"
    file = folder / "state.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        (file if damage == "gone" else folder / "record.json").unlink()
    with pytest.raises(InputError, match=r"state-00000002 cannot be used: .*; remove it to continue from step 1"):
        states.load({"a": torch.ones(100)})


def test_a_state_of_another_model_is_refused_with_names(tmp_path):
    model, other = new_model(0), new_model(0, vocab_size=9)
    states = States(tmp_path)
    states.save(1, state_tensors(model, torch.optim.AdamW(model.parameters())), {})
    with pytest.raises(InputError, match=r"of another shape: model.output.weight, model.tok_embeddings.weight"):
        states.load(state_tensors(other, torch.optim.AdamW(other.parameters())))
