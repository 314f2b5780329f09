"""What bfloat16 products cost a trained transformer: its next-token distributions beside those in float32.

Run: python benchmarks/precision_cost.py CHECKPOINT CODES [--n-images 200] [--cfg-scale 2]

CHECKPOINT from `codeprior train` or `convert`, CODES from `codeprior encode`, best of held-out images. Both precisions
see the same tokens before each token. The divergence, KL(float32 || bfloat16), is of what would be sampled, guidance
included; beside it that of PyTorch's own autocast.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codeprior.checkpoint import load_checkpoint
from codeprior.codes import CodeStore
from codeprior.generation.guidance import guide
from codeprior.generation.packed import pack
from codeprior.model import Transformer

_AT_ONCE = 20


@torch.inference_mode()
def log_probs(
    model: Transformer, classes: Tensor, tokens: Tensor, cfg_scale: float, *, autocast: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """For some images at a time: log-probabilities (B, T, V) of the model, and of what is sampled with guidance."""
    for some, given in zip(classes.split(_AT_ONCE), tokens.split(_AT_ONCE), strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(model.with_null(some), given.repeat(2, 1)[:, :-1]).float()
        yield logits[: len(some)].log_softmax(-1), guide(logits, torch.tensor(cfg_scale)).log_softmax(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("codes", type=Path)
    parser.add_argument("--n-images", type=int, default=200)
    parser.add_argument("--cfg-scale", type=float, default=2.0)
    options = parser.parse_args()

    store = CodeStore.open(options.codes)
    tokens = torch.from_numpy(store.codes[: options.n_images, 0].astype(np.int64))
    classes = torch.from_numpy(store.labels[: options.n_images].astype(np.int64))
    checkpoint = load_checkpoint(options.checkpoint)
    if checkpoint.prior is not None:
        tokens = torch.from_numpy(checkpoint.prior.token_to_cluster).long()[tokens]
    plain = list(log_probs(checkpoint.model, classes, tokens, options.cfg_scale))
    cast = list(log_probs(checkpoint.model, classes, tokens, options.cfg_scale, autocast=True))
    pack(checkpoint.model, "bf16")
    ours = list(log_probs(checkpoint.model, classes, tokens, options.cfg_scale))

    def mean(values: Iterator[Tensor]) -> float:
        return torch.cat([value.flatten() for value in values]).mean().item()

    for name, found in {"float32": plain, "bfloat16, ours": ours, "bfloat16, autocast": cast}.items():
        pairs = list(zip(plain, found, strict=True))
        nats = mean(
            -got.gather(-1, given[..., None]) for (got, _), given in zip(found, tokens.split(_AT_ONCE), strict=True)
        )
        divergence = mean((was.exp() * (was - got)).sum(-1) for (_, was), (_, got) in pairs)
        same = mean((was.argmax(-1) == got.argmax(-1)).float() for (_, was), (_, got) in pairs)
        print(f"{name:20} {nats:.5f} nats a token  KL {divergence:.2e} a token  likeliest equal {same:.2%}")


if __name__ == "__main__":
    main()
