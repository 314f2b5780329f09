"""Codes of any vocabulary, grid, number of classes and views: here 70,000 codes, 2 by 3 tokens, one class, 3 views."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codeprior.artifact import Workspace, write_json
from codeprior.checkpoint import load_checkpoint
from codeprior.codes import CODES, LABELS, META, CodeStore
from codeprior.config import TrainConfig
from codeprior.prior import CodebookPrior
from codeprior.training.loop import train

V, GRID, N_IMAGES, N_VIEWS, N_CLUSTERS = 70_000, (2, 3), 4, 3, 500
DIGEST = "sha256:" + "0" * 64
LARGE = ("token", "iar", "factorised", "refine")  # they have a weight for each of the codes


@pytest.fixture(scope="module")
def codes(tmp_path_factory):
    """Codes that need more than 16 bits, and a prior whose clusters are of many sizes."""
    folder, random = tmp_path_factory.mktemp("any"), np.random.default_rng(0)
    digests = {"codebook_digest": DIGEST, "tokenizer_digest": DIGEST}
    meta = {"grid": GRID, "image_size": 48, "views": "shift", "codebook_size": V, "missing": []}
    with Workspace(folder / "codes", kind="codes", settings={}, inputs={}) as workspace:
        tokens = random.integers(2**16, V, size=(N_IMAGES, N_VIEWS, 6))
        np.save(workspace.path(CODES), tokens.astype(np.uint32))
        np.save(workspace.path(LABELS), np.zeros(N_IMAGES, dtype=np.int64))
        write_json(workspace.path(META), {"class_names": ["one"], **meta, **digests})
        workspace.finish([CODES, LABELS, META], {})
    labels = np.sort(np.concatenate([np.arange(N_CLUSTERS), random.integers(N_CLUSTERS, size=V - N_CLUSTERS)]))
    CodebookPrior(random.permutation(labels), DIGEST, "by lot").save(folder / "prior.safetensors")
    return folder


def settings(codes, output, objective, **changes) -> TrainConfig:
    prior = None if objective == "token" else codes / "prior.safetensors"
    off = {"dropout": 0.0, "token_dropout": 0.0, "class_dropout": 0.0}
    given = {"codes": codes / "codes", "prior": prior, "objective": objective, "output": output, "device": "cpu"}
    return TrainConfig(**{**given, "batch_size": 12, "lr": 1e-2, "n_layers": 1, "precision": "fp32", **off, **changes})


@pytest.mark.parametrize("objective", ["cluster", *(pytest.param(x, marks=pytest.mark.slow) for x in LARGE)])
def test_every_objective_learns_them(codes, tmp_path, objective):
    results = train(settings(codes, tmp_path / "gpt", objective, steps=40))
    checkpoint, store = load_checkpoint(tmp_path / "gpt"), CodeStore.open(codes / "codes")
    assert checkpoint.config.model.grid == GRID
    assert checkpoint.config.class_names == ("one",)
    tokens = torch.from_numpy(store.codes.reshape(-1, 6).astype(np.int64))
    classes = torch.zeros(len(tokens), dtype=torch.int64)
    labels = torch.from_numpy(CodebookPrior.load(codes / "prior.safetensors").token_to_cluster)
    inputs = labels[tokens] if objective in ("cluster", "refine") else tokens
    targets = labels[tokens] if objective == "cluster" else tokens
    with torch.no_grad():
        logits = checkpoint.model(classes, inputs if objective == "refine" else inputs[:, :-1])
    if objective == "refine":
        logits = logits.masked_fill(labels != inputs[..., None], -torch.inf)
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert nats < 0.9 * np.log(N_IMAGES * N_VIEWS * 6)  # what one would score who only knew which codes there are
    assert results["vocab_size"] == (N_CLUSTERS if objective in ("cluster", "refine") else V)
