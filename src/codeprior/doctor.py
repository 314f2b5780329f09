"""The verb `doctor`: the environment, the devices and published weights; what is missing and how to get it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from codeprior.artifact import digest_file
from codeprior.config import DoctorConfig
from codeprior.evaluation.pretrained import ALL, FOLDER_VARIABLE, Found, locate, searched_folders
from codeprior.machine import available_threads

_CORE = ("torch", "numpy", "numba", "scipy", "scikit-learn", "scikit-image", "pillow", "safetensors", "tyro")
_OPTIONAL = {
    "pyarrow": ("images from .parquet files", "pip install 'codeprior[data]'"),
    "fastcluster": ("make bench", "pip install 'codeprior[bench]'"),
    "hypothesis": ("make test", "pip install 'codeprior[test]'"),
    "ruff": ("make check", "pip install 'codeprior[lint]'"),
}


def doctor(config: DoctorConfig) -> dict[str, Any]:
    """Look at packages, devices, disk and weights; nothing is changed and nothing fetched."""
    missing = [name for name in _CORE if _version(name) is None]
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": available_threads(),
        "disk_free_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "weights_from": _weights_folders(),
        "packages": [{"package": name, "version": _version(name) or "missing"} for name in _CORE],
        "optional": [
            {"package": name, "version": _version(name) or "missing", "for": use, "get it by": command}
            for name, (use, command) in _OPTIONAL.items()
        ],
        "devices": _devices() if "torch" not in missing else [],
        "weights": _weights(),
        "warnings": [f"{name} is missing: pip install codeprior again" for name in missing] + _conflicts(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    rows: list[dict[str, Any]] = [
        {"device": "cpu", "name": platform.processor() or platform.machine(), "memory_gb": None}
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory_gb = round(properties.total_memory / 1e9, 1)
        rows.append({"device": f"cuda:{index}", "name": properties.name, "memory_gb": memory_gb})
    return rows


def _weights() -> list[dict[str, Any]]:
    """The files by which published scores are defined: which were found, and how to get the others."""
    rows = []
    for published in ALL:
        row = {"weights": published.names[0], "for": published.purpose, "found": "missing"}
        row["get it by"] = f"--download, or {published.url}"
        if (found := locate(published)) is not None:
            is_right = Found(*found, digest_file(found[0])).is_published(published)
            row |= {
                "found": str(found[0]),
                "get it by": "" if is_right else "removing this one: it is not what was published",
            }
        rows.append(row)
    return rows


def _weights_folders() -> str:
    """Where weights are looked for, in order."""
    folders = [f"{folder} ({way})" for folder, way in searched_folders()]
    return ", ".join(folders if os.environ.get(FOLDER_VARIABLE) else [f"{FOLDER_VARIABLE} (not set)", *folders])


def _conflicts() -> list[str]:
    """torchvision beside a torch that it was not built for fails on import, and takes other packages down with it."""
    if importlib.util.find_spec("torchvision") is None:
        return []
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a RuntimeError about a missing operator, typically
        return [f"torchvision is installed but does not import ({type(error).__name__}): pip uninstall torchvision"]
    return []
