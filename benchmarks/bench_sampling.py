"""Classes to images: `codeprior sample` beside LlamaGen's `generate`, with the same weights, guidance on.

Run: python benchmarks/bench_sampling.py [--original LLAMAGEN] [--model GPT-B] [--batch-size 16] [--repeats 3]
     python benchmarks/bench_sampling.py --original LLAMAGEN --device cuda --batch-size 128

LLAMAGEN is a copy of https://github.com/FoundationVision/LlamaGen; without it only our rows are measured. Both make the
tokens of one batch of 256 x 256 images and decode them with VQ-16, weights random, in turn, in one process, on all
cores that it may use. The original runs in float32, as its weights are, and in bfloat16, as its script for FID does on
a GPU, there compiled by PyTorch as in that script. It draws from torch's global generator, so tokens are compared where
both take the likeliest.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import in_a_process, interleaved, median, peak_over_now, write_results
from torch import Tensor

from codeprior.checkpoint import Checkpoint, CheckpointConfig
from codeprior.config import SampleConfig
from codeprior.generation.sample import Maker
from codeprior.generation.tiles import in_tiles, tile_size
from codeprior.model import Transformer, model_config
from codeprior.tokenizers.vqgan import PRESETS, VQGAN, VQGANTokenizer

IMAGE_SIZE, GRID, N_CLASSES, VOCABULARY = 256, (16, 16), 1000, 16384
CFG_SCALE = 2.0
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_inputs(root: Path, name: str) -> None:
    """Write a transformer and VQ-16 with random weights, as `codeprior sample` reads them."""
    torch.manual_seed(0)
    config = model_config(name, vocab_size=VOCABULARY, n_classes=N_CLASSES, grid=GRID)
    model = Transformer(config, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.output.weight, std=0.02)  # it begins at zero, where every token is as likely
    class_names = tuple(map(str, range(N_CLASSES)))
    about = CheckpointConfig(config, class_names, IMAGE_SIZE, VOCABULARY, None, None, "token")
    Checkpoint(model, about).save_pretrained(root / "model")
    VQGANTokenizer(VQGAN(PRESETS["VQ-16"]), IMAGE_SIZE).save_pretrained(root / "tokenizer")


class Ours:
    """What `codeprior sample` works with: on a CPU tiles of a batch, a thread each."""

    def __init__(
        self, root: Path, precision: str, batch_size: int, device: torch.device, *, greedy: bool = False
    ) -> None:
        config = SampleConfig(
            checkpoint=root / "model",
            tokenizer=root / "tokenizer",
            output=root / "none",
            cfg_scale=CFG_SCALE,
            top_k=int(greedy),
            precision=precision,  # type: ignore[arg-type]
            device=str(device),
        )
        self.maker = Maker.of(config, device)
        self.batch_size, self.device = batch_size, device

    def _in_tiles(self, make: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        tile = tile_size(self.maker.checkpoint.config.model, self.device, self.batch_size)
        return np.concatenate(list(in_tiles(make, range(self.batch_size), tile, self.batch_size, self.device)))

    def tokens(self) -> Tensor:
        """Codes (B, T)."""
        return torch.from_numpy(self._in_tiles(lambda indices: self.maker.tokens(indices).cpu().numpy()))

    def pixels(self, tokens: Tensor) -> np.ndarray:
        """Images uint8 (B, H, W, 3)."""
        return self._in_tiles(lambda indices: self.maker.decode(tokens[indices].to(self.device)))


class LlamaGens:
    """What its script for FID works with, without its demand for CUDA, and with our weights."""

    def __init__(
        self,
        original: Path,
        root: Path,
        name: str,
        precision: str,
        batch_size: int,
        device: torch.device,
        *,
        greedy: bool = False,
    ) -> None:
        sys.path.insert(0, str(original))
        gpt = importlib.import_module("autoregressive.models.gpt")
        self.generate = importlib.import_module("autoregressive.models.generate").generate
        self.model = gpt.GPT_models[name](
            vocab_size=VOCABULARY,
            block_size=GRID[0] * GRID[1],
            num_classes=N_CLASSES,
            cls_token_num=1,
            model_type="c2i",
        )
        self.model.load_state_dict(Checkpoint.open(root / "model").model.state_dict())
        self.model.eval().to(device, PRECISIONS[precision])
        if device.type == "cuda":
            self.model = torch.compile(self.model, mode="reduce-overhead", fullgraph=True)
        vq_model = importlib.import_module("tokenizer.tokenizer_image.vq_model")
        self.tokenizer = vq_model.VQ_models["VQ-16"](codebook_size=VOCABULARY, codebook_embed_dim=8).eval()
        weights = VQGANTokenizer.open(root / "tokenizer").model.state_dict()
        self.tokenizer.load_state_dict(weights, strict=False)  # but for a buffer of its training
        self.tokenizer.to(device)
        self.batch_size, self.device, self.greedy = batch_size, device, greedy

    def tokens(self) -> Tensor:
        """Codes (B, T)."""
        sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "sample_logits": not self.greedy}
        classes = torch.arange(self.batch_size, device=self.device)
        n_tokens = GRID[0] * GRID[1]
        made: Tensor = self.generate(self.model, classes, n_tokens, cfg_scale=CFG_SCALE, cfg_interval=-1, **sampling)
        return made.long().cpu()

    @torch.no_grad()
    def pixels(self, tokens: Tensor) -> np.ndarray:
        """Images uint8 (B, H, W, 3)."""
        decoded = self.tokenizer.decode_code(tokens.to(self.device), (self.batch_size, 8, *GRID))
        return torch.clamp(127.5 * decoded + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()


Side = Ours | LlamaGens


def side(name: str, root: Path, options: argparse.Namespace, *, greedy: bool = False) -> Side:
    """By its name: "ours fp32", "llamagen bf16", ..."""
    who, precision = name.split()
    if who == "ours":
        return Ours(root, precision, options.batch_size, options.device, greedy=greedy)
    return LlamaGens(
        options.original, root, options.model, precision, options.batch_size, options.device, greedy=greedy
    )


def peak_bytes(function: Callable[[], Any], device: torch.device) -> int:
    """How far memory rises during a call, the device's where it has its own."""
    if device.type == "cpu":
        return peak_over_now(function)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    return torch.cuda.max_memory_allocated(device) - before


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time all sides in turn, weigh them, compare what they make."""
    peers = ["llamagen"] if options.original else []
    names = [f"{who} {precision}" for precision in PRECISIONS for who in [*peers, "ours"]]
    sides = {name: side(name, root, options) for name in names}
    codes = torch.randint(VOCABULARY, (options.batch_size, GRID[0] * GRID[1]))
    decoders = {name: made for name, made in sides.items() if name.endswith("fp32")}
    pixels = {name: made.pixels(codes) for name, made in decoders.items()}  # and what the first call allocates
    functions: dict[str, Callable[[], Any]] = {name: made.tokens for name, made in sides.items()}
    if options.device.type == "cuda":
        interleaved(functions, 1)  # compiles and captures
    functions |= {f"{name} pixels": partial(made.pixels, codes) for name, made in decoders.items()}
    times = interleaved(functions, options.repeats)
    row = {
        "name": options.model if options.device.type == "cpu" else f"{options.model} on {options.device}",
        "batch_size": options.batch_size,
        "device": torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "times_s": times,
    }
    for name in names:
        tokens_s, pixels_s = median(times[name]), median(times[f"{name.split()[0]} fp32 pixels"])
        row[f"{name} tokens_per_s"] = round(codes.numel() / tokens_s, 1)
        row[f"{name} images_per_s"] = round(len(codes) / tokens_s, 4)
        row[f"{name} decoded_images_per_s"] = round(len(codes) / (tokens_s + pixels_s), 4)
        arguments = ["--model", options.model, "--batch-size", str(options.batch_size), "--root", str(root)]
        arguments += ["--device", str(options.device)]
        arguments += ["--original", str(options.original)] if options.original else []
        row[f"{name} peak_bytes"] = in_a_process(__file__, *arguments, "--memory", name)["bytes"]
    if options.original:
        row |= ratios(row, times)
        row["largest difference of a pixel"] = int(np.abs(np.subtract(*pixels.values(), dtype=np.int16)).max())
        both = [side(name, root, options, greedy=True).tokens() for name in ("llamagen fp32", "ours fp32")]
        row["equal tokens, greedy"] = float((both[0] == both[1]).float().mean())
    return row


def ratios(row: dict[str, Any], times: dict[str, list[float]]) -> dict[str, float]:
    """How many times the original's images a second ours are: of medians, and of processor times."""
    found = {}
    for precision in PRECISIONS:
        for peer in PRECISIONS:
            ours, theirs = f"ours {precision}", f"llamagen {peer}"
            found[f"{ours} / {theirs}"] = row[f"{ours} images_per_s"] / row[f"{theirs} images_per_s"]
            found[f"{ours} / {theirs}, cpu"] = median(times[f"{theirs} cpu"]) / median(times[f"{ours} cpu"])
            found[f"{ours} / {theirs}, decoded"] = (
                row[f"{ours} decoded_images_per_s"] / row[f"{theirs} decoded_images_per_s"]
            )
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--original", type=Path, help="a copy of LlamaGen's repository")
    parser.add_argument("--model", default="GPT-B")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--memory", metavar="SIDE", help=argparse.SUPPRESS)  # weigh one side, in a process of its own
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # the original's, a token
    if options.memory:
        made = peak_bytes(lambda: side(options.memory, options.root, options).tokens(), options.device)
        print(json.dumps({"bytes": made}))
        return
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(sys.stderr):  # the original prints
        make_inputs(Path(root), options.model)
        row = measure(Path(root), options)
    for name, value in row.items():
        print(f"{name:44}{value}")
    if options.original:
        given = f"--original LLAMAGEN --model {options.model} --batch-size {options.batch_size}"
        given += "" if options.device.type == "cpu" else f" --device {options.device}"
        command = f"python benchmarks/bench_sampling.py {given} --repeats {options.repeats}"
        print(write_results("sampling", command, [row]))


if __name__ == "__main__":
    main()
