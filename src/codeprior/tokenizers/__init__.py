"""Tokenizers: images to codes and back. `load_tokenizer` opens a folder that `train-tokenizer` made."""

from __future__ import annotations

from codeprior.tokenizers.loading import load_tokenizer
from codeprior.tokenizers.protocol import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
