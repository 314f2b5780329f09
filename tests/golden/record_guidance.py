"""Record how originals schedule guidance: `record_guidance.py gigatok GIGATOK`, `record_guidance.py rar 1D_TOKENIZER`.

The second argument is a copy of that project's repository. Its code runs as it is; nothing of it is kept but numbers.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent


def record_gigatok() -> None:
    """The scale that GigaTok's sampler gives each token after the first, of 16 and of 256, by the schedule's name."""
    module = importlib.import_module("autoregressive.models.generate")
    used: list[float] = []

    def decode_one_token(_model: Any, token: torch.Tensor, _place: Any, scale: float, _on: bool, **_: Any) -> Any:
        used.append(scale)
        return token, token

    module.decode_one_token = decode_one_token
    module.math = math  # which its cosine uses without importing it
    windows = {"step": {"window_start": 0.18}, "rectangular": {"window_start": 0.1, "window_end": 0.7}}
    found = {}
    for schedule in ("constant", "linear", "linear_re", "triangular", "rectangular", "step", "cosine"):
        for n_tokens in (16, 256):
            used.clear()
            place, kwargs = torch.tensor([1]), windows.get(schedule, {})
            module.decode_n_tokens(None, torch.zeros(1, 1), place, n_tokens - 1, 1.75, -1, schedule, kwargs)
            found[f"{schedule}_{n_tokens}"] = np.array(used)
    np.savez_compressed(GOLDEN / "gigatok_guidance.npz", **found)


def record_rar() -> None:
    """The scale that RAR's sampler gives each of 256 tokens. Its method alone runs: its module needs other packages."""
    source = ast.parse(Path(sys.argv[2], "modeling", "rar.py").read_text())
    method = next(node for node in ast.walk(source) if isinstance(node, ast.FunctionDef) and node.name == "generate")
    method.decorator_list = []
    used: list[float] = []

    def softmax(logits: torch.Tensor, **_: Any) -> torch.Tensor:
        used.append(float(logits[0, 0]))
        return torch.ones(1, 1)

    names = {"torch": torch, "F": SimpleNamespace(softmax=softmax)}
    exec(compile(ast.Module([method], []), "rar", "exec"), names)
    model = SimpleNamespace(
        preprocess_condition=lambda condition, **_: condition,
        get_none_condition=lambda condition: condition,
        forward_fn=lambda *_, **__: torch.tensor([1.0, 0.0]).view(2, 1, 1),  # so that the guided logit is the scale
        image_seq_len=256,
        enable_kv_cache=lambda: None,
        disable_kv_cache=lambda: None,
    )
    found = {}
    for scale, power in ((16.0, 2.75), (6.9, 1.5), (4.0, 0.0)):
        used.clear()
        names["generate"](model, torch.zeros(1, dtype=torch.int64), scale, 1.0, power)
        found[f"{scale}_{power}"] = np.array(used)
    np.savez_compressed(GOLDEN / "rar_guidance.npz", **found)


if __name__ == "__main__":
    what, repository = sys.argv[1:]
    sys.path.insert(0, repository)
    torch.backends.cuda.sdp_kernel = lambda **_: contextlib.nullcontext()  # it only chooses CUDA's kernels
    {"gigatok": record_gigatok, "rar": record_rar}[what]()
