import numpy as np
import pytest
import torch

from codeprior.checkpoint import load_checkpoint
from codeprior.codes import CodeStore
from codeprior.config import SampleConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.generation.sample import sample
from codeprior.losses import cluster_logits
from codeprior.objectives import Objective, build, with_usage
from codeprior.prior import CodebookPrior
from codeprior.training.loop import train

KINDS = {
    "token": {},
    "cluster": {"objective": "cluster"},
    "iar": {"objective": "iar"},
    "iar-mean": {"objective": "iar", "iar_form": "mean", "iar_weight": 0.5},
    "factorised": {"objective": "factorised"},
    "refine": {"objective": "refine", "n_layers": 1},
    "refine-vocabulary": {"objective": "refine", "refine_over": "vocabulary", "n_layers": 2},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def settings(tiny, output, kind: str, **changes) -> TrainConfig:
    prior = {} if kind == "token" else {"prior": tiny / "prior.safetensors"}
    plain = {"dropout": 0.0, "token_dropout": 0.0, "precision": "fp32", "device": "cpu", "batch_size": 16}
    inputs = {"codes": tiny / "codes", "heldout_codes": tiny / "heldout", "output": output}
    return TrainConfig(**{**inputs, **plain, **prior, **KINDS[kind], **changes})


def objective_of(tiny, kind: str) -> Objective:
    """A new one whose outputs say something."""
    config = settings(tiny, tiny, kind)
    prior = None if config.prior is None else CodebookPrior.load(config.prior)
    objective = build(config, CodeStore.open(config.codes), prior)
    for index, weight in enumerate(objective.model.parameters()):
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(index))
    return objective


def batch(tiny) -> tuple[torch.Tensor, torch.Tensor]:
    store = CodeStore.open(tiny / "codes")
    return torch.from_numpy(store.labels[:8]), torch.from_numpy(store.codes[:8, 0].astype(np.int64))


def log_p(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]


def members_log_p(logits: torch.Tensor, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log p of each token among the tokens of its cluster."""
    own = labels == labels[tokens][..., None]
    return log_p(logits.masked_fill(~own, -torch.inf), tokens)


def definition(objective: Objective, kind: str, classes, tokens) -> torch.Tensor:
    """The loss as its docstring says it, from all logits."""
    model = objective.model
    labels = None if objective.prior is None else torch.from_numpy(objective.prior.token_to_cluster)
    inputs = labels[tokens] if kind.startswith(("cluster", "refine")) else tokens
    if kind.startswith("refine"):
        logits = model.output(model.states(model.embed(classes, inputs)))[:, 1:]
        log_probs = log_p(logits, tokens) if kind == "refine-vocabulary" else members_log_p(logits, tokens, labels)
        return -log_probs.mean()
    states = model.states(model.embed(classes, inputs[:, :-1]))
    logits = model.output(states)
    if kind == "factorised":
        clusters = model.cluster_output(states)
        return -(log_p(clusters, labels[tokens]) + members_log_p(logits, tokens, labels)).mean()
    nats = -log_p(logits, inputs).mean()
    if kind == "cluster":
        sizes = torch.bincount(labels[torch.from_numpy(objective.prior.live)])
        nats = nats + sizes.double().log()[inputs].mean()
    if kind.startswith("iar"):
        form, weight = objective.form, objective.weight
        nats = nats - weight * log_p(cluster_logits(logits, labels, form), labels[tokens]).mean()
    return nats


@every_kind
def test_a_loss_and_its_gradients_equal_their_definition_in_float64(tiny, kind):
    objective, (classes, tokens) = objective_of(tiny, kind), batch(tiny)
    nats = objective(classes, tokens)
    nats.backward()
    given = {name: weight.grad.double() for name, weight in objective.model.named_parameters()}
    exact = objective_of(tiny, kind).double()
    expected = definition(exact, kind, classes, tokens)
    expected.backward()
    assert float(nats.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, weight in exact.model.named_parameters():
        torch.testing.assert_close(given[name], weight.grad, rtol=1e-3, atol=1e-6, msg=name)  # float32, four blocks


@every_kind
def test_under_bf16_autocast_a_loss_and_its_gradients_are_near_their_definition(tiny, kind):
    objective, (classes, tokens) = objective_of(tiny, kind), batch(tiny)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats = objective(classes, tokens)
    nats.backward()
    exact = objective_of(tiny, kind).double()
    expected = definition(exact, kind, classes, tokens)
    expected.backward()
    assert nats.dtype == torch.float32
    assert float(nats.detach()) == pytest.approx(float(expected.detach()), rel=0.01)
    for weight, twin in zip(objective.model.parameters(), exact.model.parameters(), strict=True):
        error = (weight.grad.double() - twin.grad).norm() / twin.grad.norm()
        assert error < 0.05  # bfloat16 has eight bits


@every_kind
def test_the_first_loss_is_as_expected(tiny, kind, tmp_path):
    results = train(settings(tiny, tmp_path / "gpt", kind, steps=1, batch_size=120))  # every image, a view of each
    [loss] = [value for name, value in results.items() if name.startswith("train_")]
    assert loss == pytest.approx(results["initial_nats"], abs=0.05)  # one view of two: other frequencies


@pytest.fixture(scope="module")
def trained_on_clusters(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("clusters") / "gpt"
    train(settings(tiny, output, "cluster", steps=60, lr=4e-3))
    return output


@every_kind
def test_on_images_the_loss_falls_below_the_unigram_floor_and_samples_decode(tiny, kind, tmp_path, trained_on_clusters):
    results = train(settings(tiny, tmp_path / "gpt", kind, steps=60, lr=4e-3))
    given = kind.startswith("refine")
    heldout = results["heldout_nats_per_token_given_clusters" if given else "heldout_nats_per_token"]
    assert heldout < results["unigram_nats_given_clusters" if given else "unigram_nats"]
    checkpoint = load_checkpoint(tmp_path / "gpt")
    assert checkpoint.config.objective == kind.split("-")[0]
    assert (checkpoint.prior is not None) == (kind.startswith(("cluster", "refine")))
    models = {"checkpoint": tmp_path / "gpt"}
    if given:
        models = {"checkpoint": trained_on_clusters, "refine": tmp_path / "gpt"}
    output = tmp_path / "samples"
    sample(SampleConfig(**models, tokenizer=tiny / "tokenizer", output=output, n_images=10, device="cpu"))
    with np.load(tmp_path / "samples" / "samples.npz") as arrays:
        assert (arrays["arr_0"].shape, arrays["arr_0"].dtype) == ((10, 16, 16, 3), np.uint8)
        assert len(np.unique(arrays["arr_0"].reshape(10, -1), axis=0)) == 10


@pytest.mark.parametrize(
    ("objective", "with_prior"),
    [("token", True), ("cluster", False), ("iar", False), ("factorised", False), ("refine", False)],
)
def test_an_objective_and_a_prior_that_do_not_go_together(tiny, tmp_path, objective, with_prior):
    prior = tiny / "prior.safetensors" if with_prior else None
    with pytest.raises(InputError, match=f"objective {objective} .* prior"):
        train(settings(tiny, tmp_path / "gpt", "token", objective=objective, prior=prior))
    assert not (tmp_path / "gpt").exists()


def test_iar_without_weight_is_the_plain_objective(tiny):
    plain, weightless = objective_of(tiny, "token"), objective_of(tiny, "iar")
    weightless.weight = 0.0
    torch.testing.assert_close(weightless(*batch(tiny)), plain(*batch(tiny)))


def test_the_token_likelihood_of_a_cluster_model_is_that_of_the_uniform_pick(tiny):
    objective, (classes, tokens) = objective_of(tiny, "cluster"), batch(tiny)
    torch.testing.assert_close(objective.token_nats(classes, tokens), objective(classes, tokens))


def test_what_training_never_held_is_never_picked():
    prior = CodebookPrior(np.array([0, 0, 1, 1, 2]), "sha256:" + "0" * 64, "dcpe")
    known = with_usage(prior, np.array([4, 0, 0, 0, 7]))
    assert known.usage is not None
    assert known.usage.tolist() == [4, 0, 1, 1, 7]  # cluster 1 never occurs and keeps its tokens
    picked = known.pick_tokens(np.zeros(100, dtype=int), np.random.default_rng(0))
    assert set(picked) == {0}
