"""Which tokenizer a source names: a family's, in a folder or on the hub, or a user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.own import call_own, is_own
from codeprior.tokenizers.folder import FolderTokenizer, read_folder
from codeprior.tokenizers.gigatok import GigaTokTokenizer
from codeprior.tokenizers.protocol import Tokenizer
from codeprior.tokenizers.vqgan import VQGANTokenizer

FAMILIES: tuple[type[FolderTokenizer], ...] = (GigaTokTokenizer, VQGANTokenizer)
_ASKED = ("codebook", "image_size", "grid", "encode", "decode", "pixel_range", "digest")


def load_tokenizer(source: Path | str, device: torch.device | str = "cpu") -> Tokenizer:
    """Open a tokenizer.

    Parameters
    ----------
    source : path or str
        A tokenizer's folder, `hf:owner/name`, or `package.module:function` or `file.py:function`, which is called and
        gives a `Tokenizer` of your own; where that has a method `to`, it is called with the device.

    Raises
    ------
    InputError
        If it is absent, unfinished, damaged, or its weights do not fit its configuration; if yours lacks something.
    """
    target = resolve_device(device) if isinstance(device, str) else device
    if is_own(source):
        return _own(source, target)
    manifest, record = read_folder(source)
    name = record.pop("family")
    families = {family.family: family for family in FAMILIES}
    if name not in families:
        raise InputError(f"{manifest.folder}: family must be one of {', '.join(sorted(families))}, got {name}")
    return families[name].read(manifest, record, target)


def _own(source: Path | str, device: torch.device) -> Tokenizer:
    tokenizer: Any = call_own(source)
    if missing := [name for name in _ASKED if not hasattr(tokenizer, name)]:
        raise InputError(
            f"{source} gives a {type(tokenizer).__name__} without {', '.join(missing)}; "
            "see codeprior.tokenizers.Tokenizer for what a tokenizer needs"
        )
    moved: Tokenizer = tokenizer.to(device) if hasattr(tokenizer, "to") else tokenizer
    return moved
