"""Time and memory of loss and backward pass at 32 x 256 tokens, vocabulary 16,384, width 768, beside plain PyTorch's.

    python benchmarks/bench_losses.py            # both precisions and the whole step; ten minutes
    python benchmarks/bench_losses.py --tokens 1024 --repeats 2    # seconds

The peers hold all logits: cross-entropy as LlamaGen trains with it, and IAR's loss as its code makes it, log-sum-exp
over equal blocks and a cross-entropy of its own; torch's chunked `linear_cross_entropy` does not. All start from the
same hidden states and end with the gradients of states and weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from harness import in_a_process, interleaved, median, peak_over_now, write_results
from torch import Tensor

from codeprior import average_linkage
from codeprior.clustering.cut import cut
from codeprior.losses import cross_entropy_nats, factorised_nats, iar_nats, member_nats, projected
from codeprior.machine import keep_freed_memory
from codeprior.model import Transformer, model_config

V, D = 16384, 768
IAR_BLOCKS = 128
PLAIN, IAR, CHUNKED = "plain cross-entropy", "IAR's own loss", "torch's chunked cross-entropy"


def partitions() -> dict[str, Tensor]:
    """IAR's equal blocks, and DCPE's clusters of unit vectors that lie around directions of unequal density."""
    rng = np.random.default_rng(0)
    centres, density = rng.normal(size=(512, 8)), rng.dirichlet(np.full(512, 0.5))
    x = centres[rng.choice(512, size=V, p=density)] + 0.4 * rng.normal(size=(V, 8))
    tree = average_linkage(x / np.linalg.norm(x, axis=1, keepdims=True))
    dcpe = {f"DCPE {k}": torch.from_numpy(cut(tree, V, k)) for k in (512, 8192)}
    return {f"{IAR_BLOCKS} equal blocks": torch.arange(V) // (V // IAR_BLOCKS), **dcpe}


def losses(n_tokens: int) -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    """Losses by name, as functions of nothing, and the leaves whose gradients they give."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n_tokens, D, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(V, D, generator=generator)).requires_grad_()
    targets = torch.randint(V, (n_tokens,), generator=generator)
    leaves = [hidden, weight]

    def iars() -> Tensor:
        logits = F.linear(hidden, weight).float()
        blocks = logits.unflatten(-1, (IAR_BLOCKS, -1)).logsumexp(-1)
        return F.cross_entropy(blocks, targets // (V // IAR_BLOCKS)) + F.cross_entropy(logits, targets)

    functions: dict[str, Callable[[], Tensor]] = {
        PLAIN: lambda: F.cross_entropy(F.linear(hidden, weight).float(), targets),
        IAR: iars,
        "token": lambda: projected(cross_entropy_nats, hidden, weight, targets),
    }
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        functions[CHUNKED] = lambda: F.linear_cross_entropy(hidden, weight, targets, options=options)
    for name, labels in partitions().items():
        cluster_weight = torch.zeros(int(labels.max()) + 1, D).requires_grad_()
        leaves.append(cluster_weight)
        iar = partial(iar_nats, token_to_cluster=labels)
        functions[f"iar, {name}"] = partial(projected, iar, hidden, weight, targets)
        functions[f"factorised, {name}"] = partial(factorised_nats, hidden, weight, cluster_weight, targets, labels)
        functions[f"refine, {name}"] = partial(member_nats, hidden, weight, targets, labels)
    return functions, leaves


def with_backward(function: Callable[[], Tensor], leaves: list[Tensor], precision: str) -> None:
    for leaf in leaves:
        leaf.grad = None
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = function()
    loss.backward()


def memory_of(name: str, n_tokens: int, precision: str) -> dict[str, int]:
    """In a process of its own: the most that loss and backward hold over states, weights and targets."""
    functions, leaves = losses(n_tokens)
    small, small_leaves = losses(64)
    with_backward(small[name], small_leaves, precision)  # libraries load here
    return {"peak_bytes": peak_over_now(partial(with_backward, functions[name], leaves, precision))}


def measure(n_tokens: int, precision: str, repeats: int) -> list[dict[str, Any]]:
    functions, leaves = losses(n_tokens)
    runs = {name: partial(with_backward, function, leaves, precision) for name, function in functions.items()}
    interleaved(runs, 1)
    times = interleaved(runs, repeats)
    rows: list[dict[str, Any]] = []
    for name in runs:
        memory = in_a_process(__file__, "--memory-of", name, "--tokens", str(n_tokens), "--precision", precision)
        row = {
            "loss": name,
            "n_tokens": n_tokens,
            "time_s": median(times[name]),
            "cpu_s": median(times[f"{name} cpu"]),
            **memory,
        }
        rows.append({"name": f"{name}, {n_tokens} tokens, {precision}", "precision": precision, **row})
    for row in rows:
        peer = next(other for other in rows if other["loss"] == (IAR if row["loss"].startswith("iar,") else PLAIN))
        row["peer"] = peer["loss"]
        row["times_faster"] = round(peer["time_s"] / row["time_s"], 2)
        row["share_of_memory"] = round(row["peak_bytes"] / peer["peak_bytes"], 3)
        print(
            f"{row['name']:<55} {row['time_s']:8.3f} s  {row['peak_bytes'] / 1e6:7.0f} MB   "
            f"{row['times_faster']:5.2f} times as fast as {peer['loss']}, {row['share_of_memory']:.0%} of its memory",
            flush=True,
        )
    return rows


def measure_step(precision: str, repeats: int) -> list[dict[str, Any]]:
    """A whole step of GPT-B, four images, on tokens, with IAR's cluster term, and factorised."""
    generator = torch.Generator().manual_seed(0)
    classes, tokens = torch.arange(4), torch.randint(V, (4, 256), generator=generator)
    sizes: dict[str, Any] = {"vocab_size": V, "n_classes": 1000, "grid": (16, 16)}
    model = Transformer(model_config("GPT-B", **sizes), generator).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), fused=True)
    cluster_weight = torch.zeros(8192, D, requires_grad=True)
    labels = partitions()

    def states() -> Tensor:
        return model.states(model.embed(classes, tokens[:, :-1]))

    def step(loss: Callable[[], Tensor]) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            nats = loss()
        nats.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    def factorised() -> Tensor:
        return factorised_nats(states(), model.output.weight, cluster_weight, tokens, labels["DCPE 8192"])

    functions = {"token": lambda: projected(cross_entropy_nats, states(), model.output.weight, tokens)}
    for name, partition in labels.items():
        iar = partial(iar_nats, token_to_cluster=partition)
        functions[f"iar, {name}"] = lambda iar=iar: projected(iar, states(), model.output.weight, tokens)
    functions["factorised, DCPE 8192"] = factorised
    runs = {name: partial(step, loss) for name, loss in functions.items()}
    interleaved(runs, 1)
    times = interleaved(runs, repeats)
    rows = []
    for name in runs:
        # step by step beside the token's own: the machine changes more between steps than the losses differ
        share = median([mine / token for mine, token in zip(times[name], times["token"], strict=True)])
        time_s = median(times[name])
        rows.append({"name": f"step, {name}, {precision}", "precision": precision, "time_s": time_s, "of_token": share})
        print(f"GPT-B step, {name:<24} {precision} {time_s:7.3f} s, {share:.3f} of the token's", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=32 * 256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="one alone; default: both")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(json.dumps(memory_of(args.memory_of, args.tokens, args.precision)))
        return
    keep_freed_memory()  # as training does
    rows = []
    for precision in [args.precision] if args.precision else ["fp32", "bf16"]:
        rows += measure(args.tokens, precision, args.repeats)
        rows += measure_step(precision, 3 * args.repeats)  # what they differ by is less than the noise
    print(write_results("losses", "python benchmarks/bench_losses.py", rows))


if __name__ == "__main__":
    main()
