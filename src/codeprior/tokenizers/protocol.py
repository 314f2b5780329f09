"""What the pipeline asks of an image tokenizer, and of a user's own.

B images, T = h·w tokens in rows of w. Everything else, codes and generators included, knows tokenizers by this alone.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch

from codeprior.codebook import Codebook
from codeprior.pixels import SIGNED, Range


class Tokenizer(Protocol):
    """Images to codes and back: five things to say, and two that are usually as they stand here.

    Your own class need not inherit from this; if it does, it inherits the two. `load_tokenizer` makes one from
    `package.module:function` or `file.py:function`, and so every verb takes it as --tokenizer.
    """

    codebook: Codebook
    """The code vectors and the space in which they are compared."""
    image_size: int
    """Side of the square images that it was made for, pixels."""
    pixel_range: Range = SIGNED
    """What black and white are in the images that go in and come out."""

    @abstractmethod
    def grid(self, image_size: int) -> tuple[int, int]:
        """Rows and columns of the tokens of a square image; where they have no places, any two with their product.

        Raises
        ------
        InputError
            If it cannot encode images of this size.
        """

    @abstractmethod
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images float32 (B, 3, S, S) -> codes int64 (B, T)."""

    @abstractmethod
    def decode(self, codes: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Codes int64 (B, T) on a grid of (h, w) -> images float32 (B, 3, S, S), not clamped."""

    @property
    def digest(self) -> str:
        """What names it in stores of codes and checkpoints; here its codebook's. Give a version of your own if codes
        may change while the codebook does not."""
        return self.codebook.digest
