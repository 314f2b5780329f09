"""How much of the gradient of IAR's cluster loss reaches the token that was right, against the size of its cluster.

    codeprior demo --output runs/demo
    python benchmarks/gradient_skew.py runs/demo --output docs/images/iar-gradient.png

Takes the demo's transformer of tokens, its held-out codes and its DCPE tree, cut into few clusters so that their sizes
differ. At each position the cluster loss has a gradient with respect to the logit of the token that was right. Under
the mean of logits it is (p(cluster) - 1) / size; under log-sum-exp (p(cluster) - 1) p(token, given its cluster). What
multiplies p(cluster) - 1 is the token's share.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codeprior.checkpoint import load_checkpoint
from codeprior.codes import CodeStore
from codeprior.losses import ClusterForm, cluster_cross_entropy_nats, cluster_logits
from codeprior.plots import BLUE, ORANGE, _figure, _finish, _grid, _legend, _log_axis, _styled
from codeprior.prior import CodebookPrior

FORMS: dict[ClusterForm, tuple[str, str]] = {"logsumexp": ("log-sum-exp", BLUE), "mean": ("mean logit", ORANGE)}


def gradients(logits: Tensor, targets: Tensor, labels: Tensor, form: ClusterForm) -> Tensor:
    """Size of each position's gradient at its target's logit: logits (N, V) and targets (N,) to (N,)."""
    leaf = logits.clone().requires_grad_()
    loss = cluster_cross_entropy_nats(leaf, targets, labels, form) * len(targets)
    (grad,) = torch.autograd.grad(loss, leaf)
    return grad.gather(-1, targets[:, None])[:, 0].abs()


def logits_of(demo: Path) -> tuple[Tensor, Tensor]:
    """Teacher-forced logits (N, V) of the demo's transformer on held-out codes, and the tokens (N,) that were right."""
    model, codes = load_checkpoint(demo / "models" / "token").model, CodeStore.open(demo / "codes-heldout")
    tokens = torch.from_numpy(codes.codes[:, 0].astype(np.int64))
    with torch.inference_mode():
        logits = model(torch.from_numpy(codes.labels), tokens[:, :-1])
    return logits.flatten(0, 1).clone(), tokens.flatten()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of a run of `codeprior demo`")
    parser.add_argument("--n-clusters", type=int, default=48)
    parser.add_argument("--output", type=Path, default=Path("docs/images/iar-gradient.png"))
    args = parser.parse_args()
    prior = CodebookPrior.load(args.demo / "priors" / "dcpe.safetensors")
    prior = prior if prior.n_clusters == args.n_clusters else prior.cut(args.n_clusters)
    labels, sizes = torch.from_numpy(prior.token_to_cluster), prior.sizes
    logits, targets = logits_of(args.demo)
    size = sizes[prior.token_to_cluster[targets.numpy()]]
    present = np.unique(size)
    print(f"{prior.n_clusters} clusters of {sizes.min()} to {sizes.max()} codes, {len(targets)} positions")
    with _styled():
        fig, (left, right) = _figure(8.0, 3.8, columns=2)
        for form, (name, colour) in FORMS.items():
            whole = 1 - cluster_logits(logits, labels, form).softmax(-1)[range(len(targets)), labels[targets]]
            found = gradients(logits, targets, labels, form)
            for axis, values in {left: found, right: found / whole}.items():
                means = np.array([values.numpy()[size == s].mean() for s in present])
                axis.plot(present, means, "o-", color=colour, label=name, markersize=4)
                what = "gradient" if axis is left else "share"
                print(f"{name}, {what}: " + ", ".join(f"{s}: {x:.3f}" for s, x in zip(present, means, strict=True)))
        for axis, title, label in (
            (left, "Gradient at the right token", "mean size of the gradient at its logit"),
            (right, "Its share of its cluster's gradient", "share"),
        ):
            for which in "xy":
                _log_axis(getattr(axis, f"{which}axis"), which, axis)
            axis.set(title=title, xlabel="codes in the token's cluster", ylabel=label)
            _grid(axis)
        _legend(right, loc="lower left")
    _finish(fig, args.output)
    print(args.output)


if __name__ == "__main__":
    main()
