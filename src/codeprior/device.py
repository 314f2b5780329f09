"""Which device to compute on, from the name that a person gives."""

from __future__ import annotations

import os

import torch

from codeprior.errors import InputError


def resolve_device(name: str) -> torch.device:
    """The device of that name; "auto" is a CUDA device if there is one, else the CPU.

    Of several CUDA devices "auto" and "cuda" take that of LOCAL_RANK, which `torchrun` sets, and the first where it is
    not set.

    Raises
    ------
    InputError
        If torch knows no such device, or this machine has none.
    """
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if n_devices else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; give auto, cpu, cuda or cuda:<index>") from None
    if device.type == "cuda":
        _require_cuda(device, n_devices)
        if device.index is None:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % n_devices)
    elif device.type not in ("cpu", "mps"):
        raise InputError(f"device must be auto, cpu, cuda, cuda:<index> or mps, got {name!r}")
    elif device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError("this machine has no mps device; use --device cpu")
    return device


def _require_cuda(device: torch.device, n_devices: int) -> None:
    if n_devices == 0:
        build = f"this torch ({torch.__version__}) finds none"
        raise InputError(f"there is no CUDA device: {build}; use --device cpu, or see `codeprior doctor`")
    if device.index is not None and device.index >= n_devices:
        raise InputError(f"CUDA device index must be between 0 and {n_devices - 1}, got {device.index}")


def resolve_precision(name: str, device: torch.device) -> str:
    """ "fp32" or "bf16", as named; "auto" is bf16 where the device multiplies it in hardware, else fp32."""
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)  # torch has no public question for it
    return "bf16" if device.type == "cpu" and supported() else "fp32"
