"""A tokenizer of your own: each 4x4 patch of a grey image is the nearest of 64 patches.

What it needs is in `codeprior.tokenizers.Tokenizer`. A function without arguments that makes one is all that the verbs
want to know:

    codeprior extract examples/own_tokenizer.py:patches --output runs/patches.safetensors
    codeprior encode --data digits --tokenizer examples/own_tokenizer.py:patches --output runs/codes
"""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans

from codeprior import DCPE, Codebook, CodebookPrior
from codeprior.evaluation.metrics import psnr_db
from codeprior.images import open_images
from codeprior.pixels import to_pixels, to_tensor
from codeprior.tokenizers import Tokenizer

SIDE = 4


class Patches(Tokenizer):
    """Patches (64, 16) of grey values; a code is the nearest of them."""

    image_size = 16
    pixel_range = (0.0, 1.0)

    def __init__(self, vectors: np.ndarray) -> None:
        self.codebook = Codebook(vectors, normalize=False)  # compared as they are
        self.vectors = torch.from_numpy(self.codebook.vectors)

    def grid(self, image_size: int) -> tuple[int, int]:
        return image_size // SIDE, image_size // SIDE

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cdist(cut(images), self.vectors).argmin(dim=-1)

    def decode(self, codes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        rows, columns = grid
        patches = self.vectors[codes].transpose(1, 2)
        return F.fold(patches, (SIDE * rows, SIDE * columns), SIDE, stride=SIDE).expand(-1, 3, -1, -1)


def cut(images: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, S, S) -> their grey patches (B, T, 16)."""
    return F.unfold(images.mean(dim=1, keepdim=True), SIDE, stride=SIDE).transpose(1, 2)


def patches() -> Patches:
    """Learn the patches from digits: the function that the command line names."""
    pixels = open_images("digits").read_many(np.arange(300), Patches.image_size)
    rows = cut(to_tensor(pixels, pixel_range=Patches.pixel_range)).flatten(0, 1).numpy()
    return Patches(KMeans(64, n_init=1, random_state=0).fit(rows).cluster_centers_)


if __name__ == "__main__":
    tokenizer = patches()
    pixels = open_images("digits:heldout").read_many(np.arange(50), tokenizer.image_size)
    codes = tokenizer.encode(to_tensor(pixels, pixel_range=tokenizer.pixel_range))
    labels = DCPE(n_clusters=32).fit_predict(tokenizer.codebook.space)
    prior = CodebookPrior(token_to_cluster=labels, codebook_digest=tokenizer.codebook.digest, method="dcpe")
    picked = prior.pick_tokens(labels[codes.numpy()], np.random.default_rng(0))
    for name, chosen in {"its own codes": codes, "others of their clusters": torch.from_numpy(picked)}.items():
        decoded = tokenizer.decode(chosen, tokenizer.grid(tokenizer.image_size))
        print(f"{name}: {psnr_db(pixels, to_pixels(decoded, tokenizer.pixel_range)).mean():.2f} dB")
