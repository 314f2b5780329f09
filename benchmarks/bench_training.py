"""Training steps: ours beside LlamaGen's and IAR's own model and step, same sizes, same machine, in turn.

Run: python benchmarks/bench_training.py [--llamagen LLAMAGEN] [--iar IAR] [--precision fp32 bf16] [--repeats 3]

LLAMAGEN and IAR are copies of https://github.com/FoundationVision/LlamaGen and https://github.com/sjtuplayer/IAR;
without them only our rows are measured. A step is forward, loss, backward, clipping and fused AdamW, dropout on.
Theirs is their model and the lines of their loop, without the demand for CUDA, the loss read after each step; IAR's
loop gives its model an argument that it does not take, which is left out. Ours is what `codeprior train` does, which
reads the loss every ten steps; on a GPU, which is waited for then, ten steps are timed at a time. Codes are random.
Each side has processes of its own, in turn; ratios are those of a round's medians, the median of all rounds. Memory is
the most that the first two steps hold over what the process held before there was a model: weights, moments, gradients
and activations.

On a GPU: --device cuda --compile --precision bf16 --batch-size 32, with --model GPT-L too; its rows say the share of
the device's peak (MFU), and stand in the result file under a name of their own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import in_a_process, interleaved, median, peak_over_now, write_results

from codeprior.artifact import Workspace, write_json
from codeprior.codes import CODES, LABELS, META
from codeprior.config import TrainConfig
from codeprior.prior import CodebookPrior
from codeprior.training.distributed import Team
from codeprior.training.inputs import Inputs
from codeprior.training.logs import flops_per_image, peak_tflops
from codeprior.training.loop import STEPS_BETWEEN_LOGS, Run, scoped

VOCABULARY, N_CLASSES, GRID, N_CLUSTERS = 16384, 1000, 16, 128
ROUNDS = 4  # each side gets processes of its own: what it asks of the allocator is its own affair
DIGEST = "sha256:" + "0" * 64
Step = Callable[[], object]


def make_codes(folder: Path, n_images: int) -> Path:
    """Write a store of random codes, and a prior of equal clusters beside it."""
    random = np.random.default_rng(0)
    meta = {"grid": (GRID, GRID), "image_size": 16 * GRID, "views": "centre", "codebook_size": VOCABULARY}
    names = [str(number) for number in range(N_CLASSES)]
    with Workspace(folder / "codes", kind="codes", settings={}, inputs={}) as workspace:
        codes = random.integers(VOCABULARY, size=(n_images, 1, GRID**2)).astype(np.uint16)
        np.save(workspace.path(CODES), codes)
        np.save(workspace.path(LABELS), random.integers(N_CLASSES, size=n_images))
        digests = {"codebook_digest": DIGEST, "tokenizer_digest": DIGEST}
        write_json(workspace.path(META), {"class_names": names, **meta, **digests, "missing": []})
        workspace.finish([CODES, LABELS, META], {})
    labels = np.arange(VOCABULARY) // (VOCABULARY // N_CLUSTERS)
    CodebookPrior(labels, DIGEST, "blocks").save(folder / "prior.safetensors")
    return folder


class Bench:
    """The same batch for all sides."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.inputs = {kind: self._open(kind) for kind in ("token", "iar")}
        codes = self.inputs["token"].codes
        rows = np.arange(options.batch_size)
        self.tokens = torch.from_numpy(codes.codes[rows, 0].astype(np.int64)).to(options.device)
        self.classes = torch.from_numpy(codes.labels[rows]).to(options.device)

    def _config(self, kind: str, precision: str = "fp32") -> TrainConfig:
        return TrainConfig(
            codes=self.folder / "codes",
            prior=self.folder / "prior.safetensors" if kind == "iar" else None,
            objective="iar" if kind == "iar" else "token",
            output=self.folder / f"{kind}-{precision}",
            model=self.options.model,
            batch_size=self.options.batch_size,
            steps=10**6,
            lr=1e-4,
            precision="bf16" if precision == "bf16" else "fp32",
            device=self.options.device,
            compile=self.options.compile,
        )

    def _open(self, kind: str) -> Inputs:
        return Inputs.open(self._config(kind))

    def ours(self, kind: str, precision: str) -> Step:
        """A step of `codeprior train`."""
        config = self._config(kind, precision)
        team = Team(config.device)
        workspace = Workspace(config.output, kind="checkpoint", settings={}, inputs={}, overwrite=True)
        run = Run(config, team, self.inputs[kind], workspace)

        def step() -> None:
            with scoped(team.device):
                run.take_step((self.classes, self.tokens))

        return step

    def theirs(self, kind: str, precision: str) -> Step:
        """A step of LlamaGen's or IAR's trainer."""
        build = load_originals(self.options.iar if kind == "iar" else self.options.llamagen)[self.options.model]
        torch.manual_seed(0)
        sizes = {"vocab_size": VOCABULARY, "block_size": GRID**2, "num_classes": N_CLASSES, "cls_token_num": 1}
        dropout = {"resid_dropout_p": 0.1, "ffn_dropout_p": 0.1, "token_dropout_p": 0.1, "drop_path_rate": 0.0}
        model = build(model_type="c2i", **sizes, **dropout, **({"cluster_size": 128} if kind == "iar" else {}))
        model = model.to(self.options.device).train()
        groups = [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.05},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=True)
        call = torch.compile(model) if self.options.compile else model
        device = torch.device(self.options.device).type
        autocast = torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16")

        def step() -> None:
            with autocast:
                _, loss = call(cond_idx=self.classes, idx=self.tokens[:, :-1], targets=self.tokens)
                if kind == "iar":
                    loss = 1.0 * loss[0] + loss[1]
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            assert np.isfinite(loss.item())

        return step


def load_originals(root: Path) -> dict[str, Callable[..., torch.nn.Module]]:
    """The models of a copy of LlamaGen or IAR, whose modules have the same names."""
    for name in [name for name in sys.modules if name.split(".")[0] in ("autoregressive", "utils")]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        models: dict[str, Callable[..., torch.nn.Module]] = importlib.import_module(
            "autoregressive.models.gpt"
        ).GPT_models
    finally:
        sys.path.remove(str(root))
    return models


def sides(options: argparse.Namespace) -> list[str]:
    """What to compare, by name."""
    theirs = {"llamagen": options.llamagen, "iar": options.iar}
    return ["ours token", "ours iar", *(name for name, root in theirs.items() if root)]


def one_side(bench: Bench, name: str, precision: str) -> Step:
    """The step of that name."""
    kind = "iar" if "iar" in name else "token"
    return bench.ours(kind, precision) if name.startswith("ours") else bench.theirs(kind, precision)


def measure(bench: Bench, precision: str) -> dict[str, Any]:
    """Time all sides in turn, each in processes of its own."""
    options = bench.options
    names = sides(options)
    times: dict[str, list[float]] = {}
    peaks: dict[str, list[int]] = {}
    for _ in range(ROUNDS):
        for name in names:
            measured = in_a_process(__file__, *arguments(options, precision), "--side", name)
            peaks.setdefault(name, []).append(measured["peak_bytes"])
            for clock, seconds in measured["times_s"].items():
                times.setdefault(clock, []).extend(seconds)
    device = torch.device(options.device)
    n_images = options.batch_size * steps_at_a_time(device)
    n_tokens, flops = n_images * GRID**2, n_images * flops_per_image(bench_model_config(bench))
    peak = peak_tflops(device, precision)
    row: dict[str, Any] = {"name": f"{options.model} {precision}{' compiled' if options.compile else ''}"}
    row |= {"batch": f"{options.batch_size} x {GRID**2}", "threads": torch.get_num_threads()}
    row |= {"steps_at_a_time": steps_at_a_time(device), "times_s": times}
    if device.type == "cuda":
        row["device"] = torch.cuda.get_device_name(device)
    for name in names:
        row[f"{name} tokens_per_s"] = round(n_tokens / median(times[name]), 1)
        row[f"{name} gflops_per_s"] = round(flops / median(times[name]) / 1e9, 1)
        if peak is not None:
            row[f"{name} mfu"] = round(flops / median(times[name]) / 1e12 / peak, 3)
    for ours, theirs in (("ours token", "llamagen"), ("ours iar", "iar")):
        if theirs in names:
            row[f"{ours} times faster"] = ratio(times[theirs], times[ours])
            row[f"{ours} times faster, cpu"] = ratio(times[f"{theirs} cpu"], times[f"{ours} cpu"])
    row["iar over token, ours"] = ratio(times["ours iar"], times["ours token"])
    for name in names:
        row[f"{name} peak_bytes"] = max(peaks[name])
    return row


def ratio(one: list[float], other: list[float]) -> float:
    """How many times one side's times are the other's, each round by itself, for the machine changes; the median."""
    rounds = zip(np.split(np.array(one), ROUNDS), np.split(np.array(other), ROUNDS), strict=True)
    return round(median([float(np.median(a) / np.median(b)) for a, b in rounds]), 3)


def bench_model_config(bench: Bench) -> Any:
    """The architecture that is measured."""
    from codeprior.model import model_config

    return model_config(bench.options.model, vocab_size=VOCABULARY, n_classes=N_CLASSES, grid=(GRID, GRID))


def arguments(options: argparse.Namespace, *precisions: str) -> list[str]:
    """The command line of these options."""
    given = {"llamagen": options.llamagen, "iar": options.iar, "repeats": options.repeats}
    given |= {"batch-size": options.batch_size, "model": options.model, "device": options.device}
    flags = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    return [*flags, *(["--compile"] if options.compile else []), "--precision", *precisions]


def print_side(bench: Bench, name: str, precision: str) -> None:
    """Memory of one side's weights and first two steps, which compile and are not timed; seconds of later steps."""
    device = torch.device(bench.options.device)
    made: list[Step] = []

    def begin() -> None:
        made.append(one_side(bench, name, precision))
        made[0]()
        made[0]()

    def timed() -> None:
        for _ in range(steps_at_a_time(device)):
            made[0]()
        if device.type == "cuda":
            torch.cuda.synchronize()

    peak_bytes = peak_on_gpu(begin) if device.type == "cuda" else peak_over_now(begin)
    print(json.dumps({"peak_bytes": peak_bytes, "times_s": interleaved({name: timed}, bench.options.repeats)}))


def steps_at_a_time(device: torch.device) -> int:
    """How many steps a time is of."""
    return STEPS_BETWEEN_LOGS if device.type == "cuda" else 1


def peak_on_gpu(function: Callable[[], object]) -> int:
    """How far tensors rise above those that were held before a call, in bytes."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--llamagen", type=Path, help="a copy of LlamaGen's repository")
    parser.add_argument("--iar", type=Path, help="a copy of IAR's repository")
    parser.add_argument("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--model", default="GPT-B")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3, help=f"timed steps of each of {ROUNDS} processes a side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile all sides, ours block by block")
    parser.add_argument("--side", help=argparse.SUPPRESS)  # measure this one, in a process of its own
    options = parser.parse_args()
    os.environ["CODEPRIOR_PROGRESS"] = "0"
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(make_codes(Path(root), max(64, options.batch_size)), options)
        if options.side:
            print_side(bench, options.side, options.precision[0])
            return
        rows = [measure(bench, precision) for precision in options.precision]
    for row in rows:
        print("\n".join(f"{name:32}{value}" for name, value in row.items() if name != "times_s"))
    if options.llamagen or options.iar:
        words = " ".join(
            arguments(argparse.Namespace(**{**vars(options), "llamagen": "LlamaGen", "iar": "IAR"}), *options.precision)
        )
        name = "training" if torch.device(options.device).type == "cpu" else "training on a GPU"
        print(write_results(name, f"python benchmarks/bench_training.py {words}", rows))


if __name__ == "__main__":
    main()
