"""On a CUDA device training is what it is on a CPU, to rounding; compiled and in bfloat16 it learns."""

import json

import pytest
import torch

from codeprior.config import TrainConfig
from codeprior.training import optimizer
from codeprior.training.captured import Captured
from codeprior.training.loop import train
from codeprior.training.optimizer import learning_rate

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:TensorFloat32"),  # that a compiler would like to round products
]
CUDA = "cuda"


def settings(tiny, output, objective, **changes) -> TrainConfig:
    given = {"codes": tiny / "codes", "heldout_codes": tiny / "heldout", "output": output, "objective": objective}
    prior = {} if objective == "token" else {"prior": tiny / "prior.safetensors"}
    plain = {"dropout": 0.0, "token_dropout": 0.0, "precision": "fp32", "compile": False, "batch_size": 16}
    return TrainConfig(**{**given, **prior, **plain, **changes})


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [value for line in lines for name, value in line.items() if name.startswith(("train_", "heldout_"))]


@pytest.mark.parametrize("objective", ["token", "cluster", "iar", "factorised", "refine"])
def test_losses_are_those_of_a_cpu(tiny, tmp_path, objective):
    for device in (CUDA, "cpu"):
        train(settings(tiny, tmp_path / device, objective, steps=20, ema_decay=0.9, device=device))
    assert losses(tmp_path / CUDA) == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)  # sums in another order


def test_a_recorded_pass_gives_what_the_function_does_and_draws_anew_from_each_seed():
    weight = torch.nn.Parameter(torch.randn(300, device=CUDA))

    def function(x):
        loss = (torch.nn.functional.dropout(weight * x) ** 2).sum()
        loss.backward()
        return loss.detach()

    def after(seed, call, x):
        torch.manual_seed(seed)
        weight.grad = None
        return call(x).clone(), weight.grad.clone()

    captured = Captured(function, [weight])
    for seed in (1, 1, 2, 1):
        x = torch.randn(300, device=CUDA)
        for one, other in zip(after(seed, captured, x), after(seed, function, x), strict=True):
            torch.testing.assert_close(one, other)


def stopping_at_13(step, config):
    if step == 13:
        raise KeyboardInterrupt
    return learning_rate(step, config)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["token", "cluster", "iar", "factorised"])
def test_compiled_and_recorded_losses_are_the_plain_ones_and_a_resumed_run_the_unbroken_one(
    tiny, tmp_path, objective, monkeypatch
):
    common = {"ema_decay": 0.9, "device": CUDA}
    for name, compiled in (("plain", False), ("compiled", True)):
        train(settings(tiny, tmp_path / name, objective, steps=20, compile=compiled, **common))
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)
    dropped = {"dropout": 0.3, "token_dropout": 0.1, "compile": True}
    train(settings(tiny, tmp_path / "unbroken", objective, steps=20, **common, **dropped))
    config = settings(tiny, tmp_path / "resumed", objective, steps=20, checkpoint_every=7, **common, **dropped)
    monkeypatch.setattr(optimizer, "learning_rate", stopping_at_13)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    monkeypatch.undo()
    train(config)
    assert losses(tmp_path / "resumed") == pytest.approx(losses(tmp_path / "unbroken"), rel=1e-3)


@pytest.mark.slow
def test_compiled_in_bfloat16_with_dropout_the_loss_falls_below_the_floor(tiny, tmp_path):
    dropped = {"dropout": 0.1, "token_dropout": 0.1, "drop_path": 0.1}
    fast = {"precision": "bf16", "compile": True, "peak_tflops": 100.0}
    results = train(settings(tiny, tmp_path / "gpt", "iar", steps=80, lr=4e-3, device=CUDA, **dropped, **fast))
    assert results["heldout_nats_per_token"] < results["unigram_nats"]
    assert '"mfu"' in (tmp_path / "gpt" / "metrics.jsonl").read_text()
