"""How likely held-out images are to a trained transformer, token by token: verb `likelihood`.

In nats per token of the codebook, whatever the transformer predicts, so that vocabularies compare. A model of clusters
is charged for the choice of the token within the cluster as well: by the way in which `sample` would choose it.

Shapes: B images, T tokens, V codebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from codeprior.artifact import Workspace
from codeprior.checkpoint import Checkpoint, load_checkpoint
from codeprior.codes import CodeStore, unigram_entropy_nats
from codeprior.config import LikelihoodConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.generation.refine import check_refines
from codeprior.losses import LOGITS_AT_ONCE
from codeprior.model import Transformer
from codeprior.parts import Parts, Rows, waiting
from codeprior.prior import CodebookPrior
from codeprior.shards import Shard

_PARTS = "parts"


def likelihood(config: LikelihoodConfig) -> dict[str, Any]:
    """Measure -log p(token) of a checkpoint on a code store.

    Where RANK and WORLD_SIZE are set, as by `torchrun`, the processes share the images. A killed run is continued.

    Returns
    -------
    dict
        output, objective, n_images, n_views, n_tokens; nats_per_token (for a model of clusters with the token picked
        uniformly among the live ones of its cluster: plus the log of their number) with its standard error over images
        `_se`, perplexity, bits_per_image; of a model of clusters also nats_per_cluster (its own, which compares with
        models of the same clusters alone), nats_per_token_by_usage (the token picked by its usage), and
        nats_per_token_refined (with --refine); unigram_nats_per_token, the entropy of the store's codes;
        never_made, the share of the tokens that the model's decoding cannot make, which are left out; warnings.

    Raises
    ------
    InputError
        If the store belongs to another codebook, grid or classes than the checkpoint, or the latter generates nothing.
    """
    shard, device = Shard.from_environment(), resolve_device(config.device)
    checkpoint = load_checkpoint(config.checkpoint, device, average=config.ema)
    refiner = None if config.refine is None else load_checkpoint(config.refine, device, average=config.ema)
    codes = CodeStore.open(config.codes)
    _check(checkpoint, refiner, codes)
    model = _Measure(checkpoint, refiner, device)
    inputs = {"checkpoint": checkpoint.digest, "codes": codes.digest}
    with Workspace(
        config.output,
        kind="likelihood",
        settings=config.settings(),
        inputs=inputs | ({"refine": refiner.digest} if refiner else {}),
        overwrite=config.overwrite,
        shard=shard,
    ) as workspace:
        if not workspace.complete:
            _measure_all(config, workspace, model, codes)
        results = waiting(shard) if workspace.manifest is None else workspace.manifest.results
        return {"output": str(config.output), **results}


def _check(checkpoint: Checkpoint, refiner: Checkpoint | None, codes: CodeStore) -> None:
    config = checkpoint.config
    config.verify(codes.codebook_digest, "the code store")
    if config.objective == "refine":
        raise InputError(
            "this checkpoint refines clusters: give it as --refine, and one that makes them as --checkpoint"
        )
    if config.model.caption_dim is not None:
        raise InputError("this checkpoint takes captions, which a code store does not hold; only classes are measured")
    if config.model.grid != codes.grid:
        raise InputError(f"the checkpoint's codes lie on a grid of {config.model.grid}, the store's on {codes.grid}")
    if config.class_names != codes.class_names:
        raise InputError(
            f"the checkpoint knows {len(config.class_names)} classes, the store has {len(codes.class_names)}; both "
            "need the same, by name and order"
        )
    if refiner is not None:
        check_refines(refiner, checkpoint)


def _measure_all(config: LikelihoodConfig, workspace: Workspace, model: _Measure, codes: CodeStore) -> None:
    """Make this process's share of the sums and, if it is the last to finish, the results."""
    n_images = min(config.n_images or len(codes), len(codes))
    images = np.linspace(0, len(codes) - 1, n_images).round().astype(np.int64)
    n_views = codes.codes.shape[1] if config.views == "all" else 1
    group = max(1, config.batch_size // n_views)

    def batches(run: range) -> Iterator[Rows]:
        for start in range(run.start, run.stop, group):
            rows = images[start : min(start + group, run.stop)]
            tokens = codes.codes[rows, :n_views].reshape(len(rows) * n_views, -1)
            sums = model.sums(codes.labels[rows].repeat(n_views), tokens)
            yield sums.reshape(len(rows), n_views, -1).sum(axis=1), {}

    parts = Parts(workspace.path(_PARTS), n_images, (len(model.terms),), np.dtype(np.float64))
    parts.make_share(workspace, group, batches, "likelihood")
    with workspace.alone():
        if workspace.complete or parts.missing(range(n_images)):
            return
        path = workspace.path(".sums.npy")
        sums = dict(zip(model.terms, np.array(parts.assemble(path)).T, strict=True))
        n_tokens = codes.codes.shape[2]
        numbers = {"n_images": n_images, "n_views": n_views, "n_tokens": n_tokens}
        results = {"objective": model.objective, **numbers, **summary(sums, n_views * n_tokens, n_tokens)}
        results["unigram_nats_per_token"] = unigram_entropy_nats(codes.usage())
        workspace.finish([], results | {"warnings": _warnings(results)})
        parts.remove()
        path.unlink()


def summary(sums: dict[str, np.ndarray], n_made: int, n_tokens: int) -> dict[str, Any]:
    """Means from each image's sums of nats over its tokens.

    Parameters
    ----------
    sums : dict of ndarray of shape (N,), float64
        "count" of the tokens that were measured; nats of the "model", and for the choice within its clusters "uniform",
        "by_usage", "refined", as far as there are such.
    n_made : int
        Tokens of an image, all views counted.
    n_tokens : int
        Tokens of one view.
    """
    count, model = sums["count"], sums["model"]
    total = model + sums.get("uniform", 0)
    nats = float(total.sum() / count.sum())
    results: dict[str, Any] = {"nats_per_token": nats, "nats_per_token_se": _standard_error(total, count)}
    for choice in ("by_usage", "refined"):
        if choice in sums:
            results[f"nats_per_token_{choice}"] = float((model + sums[choice]).sum() / count.sum())
    if "uniform" in sums:
        results["nats_per_cluster"] = float(model.sum() / count.sum())
    results |= {"perplexity": math.exp(nats), "bits_per_image": nats * n_tokens / math.log(2)}
    return results | {"never_made": float(1 - count.sum() / (n_made * len(count)))}


def _standard_error(total: np.ndarray, count: np.ndarray) -> float | None:
    """Of the mean over tokens, images drawn anew."""
    if len(total) < 2:
        return None
    deviations = total - count * (total.sum() / count.sum())
    return float(np.sqrt(len(total) / (len(total) - 1) * (deviations**2).sum()) / count.sum())


def _warnings(results: dict[str, Any]) -> list[str]:
    if not results["never_made"]:
        return []
    share = f"{results['never_made']:.2%}"
    return [f"{share} of the tokens are codes that never occurred in training, which decoding never makes: left out"]


@dataclass(frozen=True, eq=False)
class _Measure:
    """Sums, over each image's tokens, of the nats of a checkpoint and of the choice within its clusters."""

    checkpoint: Checkpoint
    refiner: Checkpoint | None
    device: torch.device

    @property
    def objective(self) -> str:
        return self.checkpoint.config.objective

    @property
    def prior(self) -> CodebookPrior | None:
        return self.checkpoint.prior

    @property
    def terms(self) -> list[str]:
        """What is summed."""
        if self.prior is None:
            return ["count", "model"]
        usage = [] if self.prior.usage is None else ["by_usage"]
        return ["count", "model", "uniform", *usage, *(["refined"] if self.refiner else [])]

    @torch.inference_mode()
    def sums(self, labels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Of classes (B,) and tokens (B, T): (B, terms) float64."""
        classes = torch.from_numpy(np.asarray(labels)).to(self.device)
        codes = torch.from_numpy(tokens.astype(np.int64)).to(self.device)
        model = self.checkpoint.model
        if self.prior is None:
            nats, made = predicted_nats(model, classes, codes), self._made_by(model, codes)
            terms = [made.double(), nats]
        else:
            targets = torch.from_numpy(self.prior.token_to_cluster).to(self.device)[codes]
            made = torch.from_numpy(self.prior.live).to(self.device)[codes]
            choices = (torch.from_numpy(nats).to(self.device)[codes] for nats in choice_nats(self.prior).values())
            terms = [made.double(), predicted_nats(model, classes, targets), *choices]
            if self.refiner is not None:
                terms.append(refined_nats(self.refiner, classes, codes))
        zero = torch.zeros((), device=self.device, dtype=torch.float64)
        return torch.stack([torch.where(made, term.double(), zero).sum(dim=1) for term in terms], dim=1).cpu().numpy()

    def _made_by(self, model: Transformer, codes: Tensor) -> Tensor:
        """Which tokens a model ever predicts: of a factorised output the live ones."""
        if model.cluster_output is None:
            return torch.ones_like(codes, dtype=torch.bool)
        live: Tensor = model.cluster_output.live
        return live[codes]


def choice_nats(prior: CodebookPrior) -> dict[str, np.ndarray]:
    """-log p(token, given its cluster) of a blind pick, float64 (V,), by the way of picking.

    "uniform": the log of the number of live tokens in its cluster. "by_usage", where that is known: -log of the token's
    share of its cluster's usage. Meaningless for tokens that are not live.
    """
    live_sizes = np.bincount(prior.token_to_cluster, weights=prior.live)
    found = {"uniform": np.log(live_sizes)[prior.token_to_cluster]}
    if prior.usage is not None:
        used = np.bincount(prior.token_to_cluster, weights=prior.usage)[prior.token_to_cluster]
        found["by_usage"] = np.log(used) - np.log(np.maximum(prior.usage, 1))
    return found


def predicted_nats(model: Transformer, classes: Tensor, targets: Tensor) -> Tensor:
    """-log p(target) at each position, (B, T), of classes (B,) and targets (B, T)."""
    states = model.states(model.embed(classes, targets[:, :-1])).flatten(0, 1)
    flat = targets.flatten()
    chunks = zip(*(array.split(_chunk(model)) for array in (states, flat)), strict=True)
    nats = [F.cross_entropy(model.head(some), wanted, reduction="none") for some, wanted in chunks]
    return torch.cat(nats).view_as(targets)


def refined_nats(refiner: Checkpoint, classes: Tensor, tokens: Tensor) -> Tensor:
    """-log p(token, given all clusters) at each position, (B, T), among the live tokens of its cluster: infinite for
    others."""
    assert refiner.prior is not None
    labels = torch.from_numpy(refiner.prior.token_to_cluster).to(tokens.device)
    live = torch.from_numpy(refiner.prior.live).to(tokens.device)
    clusters = labels[tokens]
    states = refiner.model.states(refiner.model.embed(classes, clusters))[:, 1:].flatten(0, 1)
    nats = []
    arrays = (states, clusters.flatten(), tokens.flatten())
    for some, inside, wanted in zip(*(array.split(_chunk(refiner.model)) for array in arrays), strict=True):
        logits = refiner.model.head(some).masked_fill(~live | (labels != inside[:, None]), -torch.inf)
        nats.append(F.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(nats).view_as(tokens)


def _chunk(model: Transformer) -> int:
    """Positions whose logits are held at a time."""
    return max(1, LOGITS_AT_ONCE // len(model.output.weight))
