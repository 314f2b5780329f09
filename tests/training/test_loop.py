import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from codeprior.artifact import short
from codeprior.checkpoint import load_checkpoint
from codeprior.cli import main
from codeprior.codes import CodeStore
from codeprior.config import EncodeConfig, TrainConfig
from codeprior.encoding import encode
from codeprior.errors import InputError
from codeprior.model import Transformer
from codeprior.objectives import with_usage
from codeprior.prior import CodebookPrior
from codeprior.training import optimizer
from codeprior.training.data import batch_rows
from codeprior.training.logs import MEASURED
from codeprior.training.loop import train
from codeprior.training.optimizer import learning_rate
from tiny import make_tokenizer

STEPS = 25


def settings(tiny, output, **changes) -> TrainConfig:
    given = {"codes": tiny / "codes", "heldout_codes": tiny / "heldout", "output": output, "device": "cpu"}
    defaults = {"steps": STEPS, "batch_size": 16, "validate_every": 10, "precision": "fp32"}
    return TrainConfig(**{**given, **defaults, **changes})


def metrics(folder) -> list[dict]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: x for key, x in line.items() if key not in MEASURED} for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted") / "gpt"
    return output, train(settings(tiny, output))


class Killed(BaseException):
    pass


def train_until(step: int, config: TrainConfig, monkeypatch) -> None:
    """Train and die at the beginning of a step, as if the power failed."""

    def dying(at: int, config: TrainConfig) -> float:
        if at == step:
            raise Killed
        return learning_rate(at, config)

    monkeypatch.setattr(optimizer, "learning_rate", dying)
    with pytest.raises(Killed):
        train(config)
    monkeypatch.undo()


@pytest.mark.parametrize("killed_at", [[3], [7], [17], [8, 9, 24]])
def test_a_killed_run_continues_bit_for_bit(tiny, uninterrupted, tmp_path, monkeypatch, killed_at):
    expected, _ = uninterrupted
    config = settings(tiny, tmp_path / "gpt", checkpoint_every=7)
    for step in killed_at:
        train_until(step, config, monkeypatch)
    train(config)
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "gpt" / name).read_bytes() == (expected / name).read_bytes()
    assert metrics(tmp_path / "gpt") == metrics(expected)
    assert not list((tmp_path / "gpt").glob("*state-*"))


def test_bf16_on_clusters_continues_bit_for_bit(tiny, tmp_path, monkeypatch):
    changes = {"prior": tiny / "prior.safetensors", "precision": "bf16"}
    train(settings(tiny, tmp_path / "whole", **changes))
    config = settings(tiny, tmp_path / "gpt", checkpoint_every=9, **changes)
    train_until(13, config, monkeypatch)
    train(config)
    assert (tmp_path / "gpt/model.safetensors").read_bytes() == (tmp_path / "whole/model.safetensors").read_bytes()
    assert metrics(tmp_path / "gpt") == metrics(tmp_path / "whole")


def test_results_and_files_are_complete(tiny, uninterrupted):
    output, results = uninterrupted
    codes = CodeStore.open(tiny / "codes")
    assert results["objective"] == "token"
    assert results["vocab_size"] == 32
    assert results["codebook_digest"] == codes.codebook_digest
    assert results["prior_digest"] is results["method"] is None
    assert results["images_per_s"] > 0
    lines = metrics(output)
    assert [line["step"] for line in lines if "train_nats_per_token" in line] == [10, 20, 25]
    assert [line["step"] for line in lines if "heldout_nats_per_token" in line] == [10, 20, 25]
    assert results["heldout_nats_per_token"] == pytest.approx(lines[-1]["heldout_nats_per_token"], rel=1e-5)
    checkpoint = load_checkpoint(output)
    assert checkpoint.config.class_names == codes.class_names
    assert checkpoint.config.tokenizer_digest == codes.tokenizer_digest
    assert checkpoint.model.n_parameters == results["n_parameters"]


def test_a_complete_run_is_not_done_twice(tiny, uninterrupted):
    output, results = uninterrupted
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert train(settings(tiny, output)) == results
    assert (output / "model.safetensors").stat().st_mtime_ns == before


def test_the_loss_falls(tiny, tmp_path):
    results = train(settings(tiny, tmp_path / "gpt", steps=40, dropout=0.0, token_dropout=0.0))
    first = metrics(tmp_path / "gpt")[1]["train_nats_per_token"]
    assert results["train_nats_per_token"] < first - 0.5


def test_the_first_cluster_loss_is_that_of_a_uniform_pick(tiny, tmp_path):
    config = settings(tiny, tmp_path / "gpt", steps=1, prior=tiny / "prior.safetensors")
    results = train(config)
    codes = CodeStore.open(tiny / "codes")
    prior = with_usage(CodebookPrior.load(tiny / "prior.safetensors"), codes.usage())
    live_sizes = np.bincount(prior.token_to_cluster[prior.live])
    tokens = codes.codes[batch_rows(0, 0, 16, *codes.codes.shape[:2])]
    expected = np.log(prior.n_clusters) + np.log(live_sizes[prior.token_to_cluster[tokens]]).mean()
    assert results["train_nats_per_token"] == pytest.approx(expected, abs=1e-5)  # `output` starts at zero
    assert (results["objective"], results["method"], results["vocab_size"]) == ("cluster", "dcpe", 16)
    assert results["prior_digest"] == CodebookPrior.load(tiny / "prior.safetensors").digest
    assert np.array_equal(load_file(tmp_path / "gpt/prior.safetensors")["token_to_cluster"], prior.token_to_cluster)


def test_an_average_is_that_of_the_weights_of_all_steps(tiny, tmp_path):
    decay, weights = 0.8, []
    for steps in range(1, 5):  # the constant rate makes longer runs continue shorter ones
        config = settings(tiny, tmp_path / str(steps), steps=steps, decay=0.0, ema_decay=decay)
        train(config)
        weights.append(load_file(tmp_path / str(steps) / "model.safetensors")["tok_embeddings.weight"])
    initial = Transformer(load_checkpoint(tmp_path / "1").config.model, torch.Generator().manual_seed(0))
    expected = initial.tok_embeddings.weight.detach().double().numpy()
    for step in weights:
        expected = decay * expected + (1 - decay) * step
    averaged = load_checkpoint(tmp_path / "4", average=True).model.tok_embeddings.weight
    np.testing.assert_allclose(averaged.detach(), expected, atol=1e-6)


def test_averaged_weights_that_were_not_kept_are_named(uninterrupted):
    with pytest.raises(InputError, match="keeps no averaged weights; it was trained without --ema-decay"):
        load_checkpoint(uninterrupted[0], average=True)


def test_a_batch_in_parts_has_the_gradients_of_the_whole(tiny, tmp_path):
    results = [
        train(
            settings(tiny, tmp_path / str(parts), accumulate=parts, dropout=0.0, token_dropout=0.0, class_dropout=0.0)
        )
        for parts in (1, 4)
    ]
    nats = [result["heldout_nats_per_token"] for result in results]
    assert nats[0] == pytest.approx(nats[1], abs=1e-4)  # sums in another order


def test_without_class_dropout_there_is_no_null_class(tiny, tmp_path):
    train(settings(tiny, tmp_path / "gpt", steps=1, class_dropout=0.0))
    tables = load_file(tmp_path / "gpt/model.safetensors")
    assert len(tables["cls_embedding.embedding_table.weight"]) == 10


def test_a_diverging_run_says_so(tiny, tmp_path):
    with pytest.raises(InputError, match="diverged before step 10"):
        train(settings(tiny, tmp_path / "gpt", lr=1e30, grad_clip=1e30))


@pytest.fixture(scope="module")
def stranger(tiny, tmp_path_factory):
    """Codes of the same images by a tokenizer with another codebook."""
    folder = tmp_path_factory.mktemp("stranger")
    make_tokenizer(folder / "tokenizer", tiny / "digits.npz", seed=1)
    data = str(tiny / "digits.npz")
    encode(EncodeConfig(data=data, tokenizer=folder / "tokenizer", output=folder / "codes", device="cpu"))
    return folder / "codes"


@pytest.mark.parametrize("role", ["codes", "heldout_codes"])
def test_another_codebooks_prior_or_codes_are_refused_with_both_digests(tiny, stranger, tmp_path, role):
    digests = {short(CodeStore.open(path).codebook_digest) for path in (tiny / "codes", stranger)}
    assert len(digests) == 2
    prior = {"prior": tiny / "prior.safetensors"} if role == "codes" else {}
    with pytest.raises(InputError) as refusal:
        train(settings(tiny, tmp_path / "gpt", **{role: stranger}, **prior))
    assert all(digest in str(refusal.value) for digest in digests)
    assert not (tmp_path / "gpt").exists()


def test_held_out_codes_of_other_classes_are_refused(tiny, tmp_path):
    with np.load(tiny / "heldout.npz") as arrays:
        np.savez(tmp_path / "few.npz", arr_0=arrays["arr_0"], arr_1=arrays["arr_1"] % 4)
    data = str(tmp_path / "few.npz")
    encode(EncodeConfig(data=data, tokenizer=tiny / "tokenizer", output=tmp_path / "codes", device="cpu"))
    with pytest.raises(InputError, match=r"10 classes .* 4 classes"):
        train(settings(tiny, tmp_path / "gpt", heldout_codes=tmp_path / "codes"))


def test_train_through_the_real_parser(tiny, tmp_path, capsys):
    inputs = ["--codes", str(tiny / "codes"), "--heldout-codes", str(tiny / "heldout")]
    flags = ["--steps", "2", "--batch-size", "8", "--output", str(tmp_path / "gpt"), "--device", "cpu", "--json"]
    main(["train", *inputs, *flags])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["objective"] == "token"
    assert result["heldout_nats_per_token"] > 0


def test_a_prior_that_is_not_there_is_one_line_and_exit_code_2(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            ["train", "--codes", str(tiny / "codes"), "--prior", "none.safetensors", "--output", str(tmp_path / "gpt")]
        )
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().endswith("no prior at none.safetensors: there is no such file")
    assert not (tmp_path / "gpt").exists()
