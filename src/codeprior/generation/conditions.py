"""What images are sampled of: classes or captions, in turn or drawn by lot, and the upper rows of other images."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codeprior.captions import Captions, read_captions
from codeprior.checkpoint import Checkpoint
from codeprior.config import SampleConfig
from codeprior.errors import InputError
from codeprior.generation.decoding import uniforms_of
from codeprior.images import ImageSet, open_images
from codeprior.pixels import to_tensor
from codeprior.tokenizers import Tokenizer

_LOT = 1  # stream of a sample's random numbers; its tokens are drawn from stream 0


@dataclass(frozen=True, eq=False)
class Prefixes:
    """Images whose upper rows of tokens are given: sample i continues image i, beginning anew after the last."""

    images: ImageSet
    n_rows: int
    tokenizer: Tokenizer
    image_size: int
    n_given: int
    """Tokens that are given: `n_rows` rows of them."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: SampleConfig, tokenizer: Tokenizer) -> Prefixes | None:
        """As the settings ask for; None where they do not.

        Raises
        ------
        InputError
            If the images cannot be opened, or there are not so many rows.
        """
        if config.prefix_images is None:
            return None
        height, width = checkpoint.config.model.grid
        if not config.prefix_rows < height:
            raise InputError(
                f"prefix_rows must be below the {height} rows of tokens of an image here, got {config.prefix_rows}"
            )
        images = open_images(config.prefix_images, seed=config.seed)
        return cls(images, config.prefix_rows, tokenizer, checkpoint.config.image_size, config.prefix_rows * width)

    def labels(self, n_classes: int) -> np.ndarray:
        """The images' own classes.

        Raises
        ------
        InputError
            If the checkpoint knows fewer.
        """
        if self.images.labels.max() >= n_classes:
            raise InputError(
                f"the images to continue have {self.images.labels.max() + 1} classes, the checkpoint {n_classes}; say "
                "with --classes of which they are to be"
            )
        return self.images.labels

    @torch.inference_mode()
    def at(self, indices: np.ndarray, device: torch.device) -> Tensor:
        """The given tokens of the samples with these indices: int64 (B, n_given), codes."""
        pixels = self.images.read_many(np.asarray(indices) % len(self.images), self.image_size)
        return self.tokenizer.encode(to_tensor(pixels, device, self.tokenizer.pixel_range))[:, : self.n_given]


@dataclass(frozen=True)
class Conditions:
    """The condition of every sample, by its index.

    `names` are of all classes of the checkpoint, or of all captions. `chosen` are the numbers of those asked for: they
    take turns, so that any run of indices has equal shares of them, or are drawn `by_lot`.
    """

    names: tuple[str, ...]
    captions: Captions | None
    digest: str | None
    chosen: np.ndarray
    by_lot: bool = False
    seed: int = 0

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, config: SampleConfig, prefixes: Prefixes | None, device: torch.device
    ) -> Conditions:
        """The checkpoint's classes, or captions read from files, as far as the settings ask for them.

        Images that are continued have their own classes, unless others are asked for.

        Raises
        ------
        InputError
            If the checkpoint takes captions and none are given, or the other way round, or they do not fit, or a class
            is not one of the checkpoint's.
        """
        architecture = checkpoint.config.model
        if (architecture.caption_dim is None) != (config.captions is None):
            takes = (
                "captions; give their features as --captions" if config.captions is None else "classes, not captions"
            )
            raise InputError(f"this checkpoint takes {takes}")
        names, captions, digest = checkpoint.config.class_names, None, None
        if config.captions is not None:
            names, captions, digest = _read_captions(config.captions, checkpoint, device)
        chosen = find_classes(config.classes, names)
        if prefixes is not None and captions is None and not config.classes:
            chosen = prefixes.labels(len(names))
        return cls(names, captions, digest, chosen, config.class_order == "random", config.seed)

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """Class or caption of the samples with these indices: int64."""
        if not self.by_lot:
            return self.chosen[np.asarray(indices) % len(self.chosen)]
        lots = uniforms_of(self.seed, indices, (), stream=_LOT)
        return self.chosen[(lots * len(self.chosen)).astype(np.int64)]

    def at(self, indices: np.ndarray, device: torch.device) -> Tensor | Captions:
        """The condition of the samples with these indices."""
        numbers = torch.from_numpy(self.numbers(indices)).to(device)
        return numbers if self.captions is None else self.captions.take(numbers)


def _read_captions(path: Path, checkpoint: Checkpoint, device: torch.device) -> tuple[tuple[str, ...], Captions, str]:
    architecture = checkpoint.config.model
    assert architecture.caption_dim is not None
    found = read_captions(path)
    padded = found.padded(architecture.caption_slots, architecture.caption_dim)
    return found.names, padded.to(device), found.digest


def find_classes(wanted: tuple[str, ...], names: tuple[str, ...]) -> np.ndarray:
    """Numbers of classes that are given by number or name, several in one word with commas between; none means all.

    Raises
    ------
    InputError
        If there is no such class; says which are near.
    """
    by_name = {_plain(name): number for number, name in reversed(list(enumerate(names)))}
    found: list[int] = []
    for word in wanted:
        parts = [word] if _plain(word) in by_name else [part.strip() for part in word.split(",") if part.strip()]
        found += [_find_class(part, by_name, len(names)) for part in parts]
    return np.array(found) if wanted else np.arange(len(names))


def _find_class(word: str, by_name: dict[str, int], n_classes: int) -> int:
    if _plain(word) in by_name:
        return by_name[_plain(word)]
    if word.isdecimal() and int(word) < n_classes:
        return int(word)
    if word.lstrip("-").isdecimal():
        raise InputError(f"a class must be between 0 and {n_classes - 1}, got {word}")
    near = difflib.get_close_matches(_plain(word), by_name, n=3)
    hint = f"perhaps you meant {' or '.join(map(repr, near))}" if near else f"give a name or 0 to {n_classes - 1}"
    raise InputError(f"no class {word!r} in this checkpoint; {hint}")


def _plain(name: str) -> str:
    return name.strip().replace("_", " ").lower()
