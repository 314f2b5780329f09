"""Record small outputs of the originals: `record.py t2i LLAMAGEN`, or `gpt_1d`, `layouts`, `tokenizer` and GIGATOK.

The second argument is a copy of that project's repository. Its code runs as it is; nothing of it is kept but numbers.
GigaTok's tokenizers need einops installed.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

GOLDEN = Path(__file__).parent
sys.path.insert(0, str(GOLDEN.parent))
from recorded import weight_named  # noqa: E402

SIZES = {"dim": 64, "n_layer": 2, "n_head": 4, "vocab_size": 96, "block_size": 16, "multiple_of": 32}
SCALES = (1.0, 1.5, 4.0, 7.5)


def with_named_weights(model: torch.nn.Module) -> Any:
    """The original's model, ready to compute with weights that follow from their names."""
    weights = {name: weight_named(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    return model.eval()


def left_padding_mask(lengths: torch.Tensor, n_slots: int) -> torch.Tensor:
    """1 where a slot holds a token of its caption: (B, n_slots)."""
    return (torch.arange(n_slots) >= n_slots - lengths[:, None]).float()


def training_mask(embedding_mask: torch.Tensor, n_positions: int) -> torch.Tensor:
    """What LlamaGen's data loader makes of an embedding mask (B, P): (B, 1, S, S)."""
    n_slots = embedding_mask.shape[1]
    mask = torch.tril(torch.ones(n_positions, n_positions)).repeat(len(embedding_mask), 1, 1)
    mask[:, :, :n_slots] *= embedding_mask[:, None]
    eye = torch.eye(n_positions)
    return (mask * (1 - eye) + eye).bool()[:, None]


def greedy(generate: Any, model: Any, condition: torch.Tensor, **options: Any) -> dict[str, np.ndarray]:
    """Tokens of greedy decoding at each guidance scale, and at one whose guidance ends."""
    found = {}
    for scale, interval in [*((scale, -1) for scale in SCALES), (4.0, 5)]:
        tokens = generate(model, condition, 16, cfg_scale=scale, cfg_interval=interval, sample_logits=False, **options)
        name = f"greedy_cfg_{scale}" + (f"_interval_{interval}" if interval >= 0 else "")
        found[name] = tokens.numpy().astype(np.int64)
        for layer in model.layers:
            layer.attention.kv_cache = None
    return found


def teacher_forced(model: Any, condition: torch.Tensor, tokens: torch.Tensor, **options: Any) -> dict[str, np.ndarray]:
    """Logits of every token and their mean cross-entropy."""
    n_slots = model.config.cls_token_num
    with torch.inference_mode():
        positions = torch.arange(n_slots + tokens.shape[1] - 1)
        logits, _ = model(idx=tokens[:, :-1], cond_idx=condition, input_pos=positions, **options)
    logits = logits[:, n_slots - 1 :]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    return {"teacher_forced_logits": logits.numpy(), "loss": loss.numpy()}


def record_t2i() -> None:
    """LlamaGen's caption-conditional transformer."""
    gpt = importlib.import_module("autoregressive.models.gpt")
    generate = importlib.import_module("autoregressive.models.generate").generate
    arguments = gpt.ModelArgs(model_type="t2i", cls_token_num=12, caption_dim=24, **SIZES)
    # The table of null vectors has 120 rows in the original whatever the number of slots; 12 here.
    model = gpt.Transformer(arguments)
    model.cls_embedding = gpt.CaptionEmbedder(24, SIZES["dim"], 0.1, token_num=12)
    model = with_named_weights(model)
    generator = np.random.default_rng(7)
    lengths, tokens = torch.tensor([12, 5, 1]), torch.from_numpy(generator.integers(0, 96, (3, 16)))
    mask = left_padding_mask(lengths, 12)
    features = torch.from_numpy(generator.standard_normal((3, 12, 24)).astype(np.float32)) * mask[..., None]
    found = {"features": features.numpy(), "lengths": lengths.numpy(), "tokens": tokens.numpy()}
    found |= teacher_forced(model, features, tokens, mask=training_mask(mask, 12 + 15))
    found |= greedy(generate, model, features, emb_masks=mask)
    np.savez_compressed(GOLDEN / "llamagen_t2i_tiny_io.npz", **found)


def record_gpt_1d() -> None:
    """GigaTok's transformer with learned positions, without and with normalised queries and keys."""
    gpt = importlib.import_module("autoregressive.models.gpt_1d")
    module = importlib.import_module("autoregressive.models.generate")
    module.dist.get_rank = lambda: 0  # it asks, without a need, which process this is
    generator = np.random.default_rng(8)
    tokens = torch.from_numpy(generator.integers(0, 96, (3, 16)))
    classes = torch.tensor([0, 7, 10])
    found: dict[str, np.ndarray] = {"tokens": tokens.numpy(), "classes": classes.numpy()}
    for qk_norm in (False, True):
        model = gpt.Transformer(gpt.ModelArgs(num_classes=10, use_qk_norm=qk_norm, **SIZES))
        model = with_named_weights(model)
        rows = teacher_forced(model, classes, tokens) | greedy(module.generate, model, classes)
        found |= {f"{name}{'_qk_norm' * qk_norm}": row for name, row in rows.items()}
    np.savez_compressed(GOLDEN / "gigatok_1d_tiny_io.npz", **found)


def gigatok_tokenizer(repository: str, name: str) -> torch.nn.Module:
    """GigaTok's tokenizer of one of its YAMLs, made on the device that torch is told."""
    import yaml

    module = importlib.import_module("tokenizer.tokenizer_image.vq.vq_vit_model")
    arguments = yaml.safe_load((Path(repository) / "configs" / "vq" / f"{name}.yaml").read_text())["model"]["init_args"]
    # 768: what its trainer adds for DINOv2-B, the teacher of all released ones
    return module.VQVitModelPlus(module.VQVitModelPlusArgs(**arguments, out_inner_dim=768))


def record_layouts(repository: str) -> None:
    """Names and shapes of the released tokenizers; of a Q-former's layers, which are alike, the first as `*`."""
    found = {}
    for name in ("VQ_SS256", "VQ_SB256", "VQ_BL256", "VQ_XLXXL256"):
        with torch.device("meta"):
            model = gigatok_tokenizer(repository, name)
        shapes: dict[str, list[int]] = {}
        layers = {"s2to1encoder": 0, "s1to2decoder": 0}
        for key, tensor in model.state_dict().items():
            part, layer = key.split(".")[0], re.search(r"\.transformer\.(\d+)\.", key)
            if layer:
                layers[part] = max(layers[part], int(layer[1]) + 1)
                key = key.replace(layer[0], ".transformer.*.")
            assert shapes.setdefault(key, list(tensor.shape)) == list(tensor.shape)
        n_parameters = sum(parameter.numel() for parameter in model.parameters())
        found[name] = {"params": n_parameters, "layers": layers, "state_dict": shapes}
    (GOLDEN / "gigatok_state_dicts.json").write_text(json.dumps(found) + "\n")


def record_tokenizer(repository: str, name: str = "VQ_SB256") -> None:
    """A whole pass of a tokenizer: indices, vectors, every fifth pixel; beside those of the others."""
    model = with_named_weights(gigatok_tokenizer(repository, name))
    image = np.random.default_rng(3).uniform(-1, 1, (1, 3, 256, 256)).astype(np.float32)
    with torch.inference_mode():
        vectors, _, (_, _, indices) = model.encode(torch.from_numpy(image))[:3]
        decoded = model.decode_code(indices, (1, 8, 1, 256))
    with np.load(GOLDEN / "gigatok_io.npz") as arrays:
        found = {key: arrays[key] for key in arrays.files}
    found[f"{name}_indices"] = indices.numpy().ravel().astype(np.uint16)
    found[f"{name}_quantized"] = vectors.numpy()
    found[f"{name}_reconstruction"] = decoded[..., ::5, ::5].numpy().astype(np.float16)
    np.savez_compressed(GOLDEN / "gigatok_io.npz", **found)


if __name__ == "__main__":
    what, repository = sys.argv[1:]
    sys.path.insert(0, repository)
    torch.backends.cuda.sdp_kernel = lambda **_: contextlib.nullcontext()  # it only chooses CUDA's kernels
    if what in ("layouts", "tokenizer"):
        {"layouts": record_layouts, "tokenizer": record_tokenizer}[what](repository)
    else:
        {"t2i": record_t2i, "gpt_1d": record_gpt_1d}[what]()
