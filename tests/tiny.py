"""Small real artifacts for tests: digits, a tokenizer that saw them for two steps, their codes, a prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from codeprior.config import EncodeConfig, ExtractConfig, TrainTokenizerConfig
from codeprior.encoding import encode
from codeprior.extract import extract
from codeprior.tokenizers.training import train_tokenizer

N_IMAGES, CODEBOOK_SIZE = 60, 32


def make(folder: Path) -> Path:
    """Fill the folder with digits.npz, tokenizer, codes (two views), heldout and prior.safetensors (16 clusters)."""
    digits = load_digits()
    pixels = (digits.images * 15.9).astype(np.uint8).repeat(2, axis=1).repeat(2, axis=2)
    for name, rows in {"digits": slice(0, N_IMAGES), "heldout": slice(N_IMAGES, N_IMAGES + 20)}.items():
        images = np.repeat(pixels[rows, ..., None], 3, axis=-1)
        np.savez(folder / f"{name}.npz", arr_0=images, arr_1=digits.target[rows])
    make_tokenizer(folder / "tokenizer", folder / "digits.npz", seed=0)
    for data, output in {"digits": "codes", "heldout": "heldout"}.items():
        encode(
            EncodeConfig(
                data=str(folder / f"{data}.npz"),
                tokenizer=folder / "tokenizer",
                output=folder / output,
                views="flip",
                device="cpu",
            )
        )
    extract(ExtractConfig(codebook=folder / "tokenizer", output=folder / "prior.safetensors"))
    return folder


def make_tokenizer(output: Path, data: Path, *, seed: int) -> Path:
    """A tokenizer of 32 codes for 16x16 images."""
    config = TrainTokenizerConfig(
        data=str(data), output=output, codebook_size=CODEBOOK_SIZE, steps=2, batch_size=16, seed=seed, device="cpu"
    )
    train_tokenizer(config)
    return output
