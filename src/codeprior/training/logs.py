"""What a run says of itself on the way: speed, share of the device's peak, memory."""

from __future__ import annotations

import resource
import sys

import torch

from codeprior.model import ModelConfig

MEASURED = ("images_per_s", "tokens_per_s", "tflops_per_s", "mfu", "peak_memory_bytes", "time_s")
"""Names in `metrics.jsonl` that depend on the machine; all others are those of an unbroken run, digit by digit."""

# Dense bf16 products with float32 sums, as the makers state them, by a part of the device's name; the first that fits.
_PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "L40S": 362,
    "A100": 312,
    "L4": 121,
    "A10": 125,
    "RTX 4090": 165,
    "RTX 3090": 71,
}


def flops_per_image(config: ModelConfig) -> float:
    """Floating-point operations of an image's forward and backward pass, as MFU counts them.

    6 a weight and position, for the weights of matrix products (embeddings are looked up), and 12 D a layer and pair of
    positions for attention, the masked half included (PaLM, arXiv:2204.02311, App. B).
    """
    block = 4 * config.dim**2 + 3 * config.dim * config.ffn_dim
    outputs = (config.n_outputs + (config.n_clusters or 0)) * config.dim
    n_positions = config.n_tokens
    weights = config.n_layers * block + outputs
    return 6.0 * weights * n_positions + 12.0 * config.n_layers * config.dim * n_positions**2


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """The device's peak at bf16 in TFLOP/s, if it is computed in and known."""
    if device.type != "cuda" or precision != "bf16":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(tflops) for part, tflops in _PEAK_TFLOPS.items() if part in name), None)


def speed(images_per_s: float, config: ModelConfig, n_devices: int, peak: float | None) -> dict[str, float]:
    """Throughput in several units: images and tokens of all devices, TFLOP/s of each, and its share of the peak (MFU).

    Parameters
    ----------
    images_per_s : float
    config : ModelConfig
    n_devices : int
    peak : float, optional
        TFLOP/s of one device; without it there is no MFU.
    """
    tflops = images_per_s * flops_per_image(config) / n_devices / 1e12
    said = {"images_per_s": images_per_s, "tokens_per_s": images_per_s * config.n_tokens, "tflops_per_s": tflops}
    return said if peak is None else {**said, "mfu": tflops / peak}


def peak_memory_bytes(device: torch.device) -> int:
    """The most that this process held so far: tensors on a CUDA device, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
