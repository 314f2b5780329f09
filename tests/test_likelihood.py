"""Held-out likelihood: one unit for all objectives, equal to the definition and to what training says of itself."""

import signal

import numpy as np
import pytest
import torch

from codeprior.artifact import read_manifest
from codeprior.checkpoint import load_checkpoint
from codeprior.codes import CodeStore
from codeprior.config import LikelihoodConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.likelihood import choice_nats, likelihood, summary
from codeprior.prior import CodebookPrior
from codeprior.training.loop import train
from killed import run_and_die

OBJECTIVES = ("token", "cluster", "iar", "factorised", "refine")


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """A model of each objective, a few steps old; training saw the store that they are measured on."""
    folder = tmp_path_factory.mktemp("models")
    for objective in OBJECTIVES:
        prior = {} if objective == "token" else {"prior": tiny / "prior.safetensors"}
        config = TrainConfig(
            codes=tiny / "codes",
            heldout_codes=tiny / "codes",
            objective=objective,
            steps=6,
            batch_size=8,
            validate_every=6,
            output=folder / objective,
            device="cpu",
            **prior,
        )
        train(config)
    return folder


def measured(models, tiny, objective, output, **changes):
    given = {"checkpoint": models / objective, "codes": tiny / "codes", "device": "cpu", **changes}
    return likelihood(LikelihoodConfig(**given, output=output))


@pytest.mark.parametrize("objective", ["token", "cluster", "iar", "factorised"])
def test_nats_are_those_that_training_validates_with(models, tiny, tmp_path, objective):
    result = measured(models, tiny, objective, tmp_path / "likelihood")
    trained = read_manifest(models / objective).results["heldout_nats_per_token"]
    assert result["never_made"] == 0
    assert result["nats_per_token"] == pytest.approx(trained, rel=1e-4)
    assert result["perplexity"] == pytest.approx(np.exp(trained), rel=1e-3)
    assert result["bits_per_image"] == pytest.approx(trained * 16 / np.log(2), rel=1e-4)
    assert (result["n_images"], result["n_views"], result["n_tokens"]) == (60, 1, 16)


def plain_nats(models, tiny, name):
    """-log p of each target, (N, T), from the logits of all positions at once; and the first views' codes."""
    checkpoint, store = load_checkpoint(models / name), CodeStore.open(tiny / "codes")
    codes = torch.from_numpy(store.codes[:, 0].astype(np.int64))
    labels = None if checkpoint.prior is None else torch.from_numpy(checkpoint.prior.token_to_cluster)
    targets = codes if name != "cluster" else labels[codes]
    inputs = labels[codes] if name == "refine" else targets[:, :-1]
    with torch.inference_mode():
        logits = checkpoint.model(torch.from_numpy(store.labels), inputs)
    if name == "refine":
        live = torch.from_numpy(checkpoint.prior.live)
        logits = logits.masked_fill((labels != labels[codes][..., None]) | ~live, -torch.inf)
    return -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0].double().numpy(), codes.numpy()


def test_a_model_of_clusters_is_charged_for_each_way_of_choosing_the_token(models, tiny, tmp_path):
    result = measured(models, tiny, "cluster", tmp_path / "likelihood", refine=models / "refine")
    own, codes = plain_nats(models, tiny, "cluster")
    members, _ = plain_nats(models, tiny, "refine")
    prior = load_checkpoint(models / "cluster").prior
    cluster_of, usage = prior.token_to_cluster, prior.usage
    uniform = [np.log(np.sum(prior.live & (cluster_of == cluster_of[code]))) for code in codes.ravel()]
    by_usage = [-np.log(usage[code] / usage[cluster_of == cluster_of[code]].sum()) for code in codes.ravel()]
    assert result["nats_per_cluster"] == pytest.approx(own.mean(), rel=1e-5)
    assert result["nats_per_token"] == pytest.approx(own.mean() + np.mean(uniform), rel=1e-5)
    assert result["nats_per_token_by_usage"] == pytest.approx(own.mean() + np.mean(by_usage), rel=1e-5)
    assert result["nats_per_token_refined"] == pytest.approx(own.mean() + members.mean(), rel=1e-5)
    assert result["nats_per_token_by_usage"] <= result["nats_per_token"]  # measured on what usage was counted on


def test_clusters_of_one_token_each_cost_nothing_to_choose_from():
    prior = CodebookPrior(np.arange(5), "sha256:0", "singles", usage=np.arange(1, 6))
    assert all((nats == 0).all() for nats in choice_nats(prior).values())


def test_choices_of_each_cluster_are_distributions_over_its_live_tokens():
    usage = np.array([3, 0, 1, 4, 0, 2])
    prior = CodebookPrior(np.array([0, 0, 0, 1, 1, 1]), "sha256:0", "two", usage=usage)
    for nats in choice_nats(prior).values():
        sums = np.bincount(prior.token_to_cluster, weights=np.where(prior.live, np.exp(-nats), 0))
        np.testing.assert_allclose(sums, 1)


def test_tokens_that_are_never_made_are_left_out_and_told_of(models, tiny, tmp_path):
    """Codes that training did not see: decoding makes none of them."""
    result = measured(models, tiny, "cluster", tmp_path / "likelihood", codes=tiny / "heldout", views="all")
    codes = CodeStore.open(tiny / "heldout").codes
    dead = ~load_checkpoint(models / "cluster").prior.live
    assert result["never_made"] == pytest.approx(dead[codes].mean(), abs=1e-12)
    assert bool(result["warnings"]) == bool(dead[codes].any())
    assert np.isfinite(result["nats_per_token"])


def test_all_views_are_the_mean_over_them(models, tiny, tmp_path):
    both = measured(models, tiny, "token", tmp_path / "all", views="all", batch_size=7)
    first = measured(models, tiny, "token", tmp_path / "first")
    assert both["n_views"] == 2
    assert both["nats_per_token"] != first["nats_per_token"]


def test_the_standard_error_is_that_of_images_drawn_anew():
    generator = np.random.default_rng(0)
    images = generator.normal(5, 0.5, size=400)  # mean nats of each image, of 16 tokens
    sums = {"count": np.full(400, 16.0), "model": 16 * images}
    assert summary(sums, 16, 16)["nats_per_token_se"] == pytest.approx(images.std(ddof=1) / 20, rel=1e-9)


def test_a_killed_run_continued_by_two_processes_is_an_unbroken_one(models, tiny, tmp_path, monkeypatch):
    unbroken = measured(models, tiny, "token", tmp_path / "unbroken", batch_size=8)
    config = LikelihoodConfig(
        checkpoint=models / "token", codes=tiny / "codes", batch_size=8, output=tmp_path / "killed", device="cpu"
    )
    assert run_and_die("likelihood", config, 3, {}) == -signal.SIGKILL
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert likelihood(config)["state"].startswith("done; the last of 2")
    monkeypatch.setenv("RANK", "0")
    assert {**likelihood(config), "output": ""} == {**unbroken, "output": ""}


def test_what_does_not_fit_is_refused(models, tiny, tmp_path):
    with pytest.raises(InputError, match="give it as --refine"):
        measured(models, tiny, "refine", tmp_path / "a")
    with pytest.raises(InputError, match="goes with a checkpoint of --objective cluster"):
        measured(models, tiny, "token", tmp_path / "a", refine=models / "refine")
    assert not (tmp_path / "a").exists()
