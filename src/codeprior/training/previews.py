"""Pictures of what the model makes on its way: of the same classes and random numbers each time, so that they compare.

A model that generates is sampled from. A second stage (`refine`) is shown what it is for: images, a token picked
blindly of each of their clusters, and the tokens that it chooses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codeprior.checkpoint import Checkpoint, CheckpointConfig
from codeprior.codes import CodeStore
from codeprior.config import SampleConfig, TrainConfig
from codeprior.generation.decoding import uniforms_of
from codeprior.generation.output import write_grid
from codeprior.generation.refine import refine
from codeprior.generation.sample import Maker
from codeprior.generation.tiles import in_tiles, tile_size
from codeprior.pixels import to_pixels
from codeprior.plots import image_grid
from codeprior.tokenizers import load_tokenizer
from codeprior.training.data import read_batch

FOLDER = "previews"
_N_CLASSES, _N_OF_EACH = 8, 8


class Previews:
    """Draws what a model makes that is being trained, into `previews/00000100.png` and the like.

    Parameters
    ----------
    config : TrainConfig
        With a tokenizer.
    codes : CodeStore
        Of the images that a second stage is shown on.
    checkpoint : CheckpointConfig
        What the run will leave.
    device : torch.device

    Raises
    ------
    InputError
        If there is no such tokenizer, or it has another codebook than the codes.
    """

    def __init__(
        self, config: TrainConfig, codes: CodeStore, checkpoint: CheckpointConfig, device: torch.device
    ) -> None:
        assert config.tokenizer is not None
        self.codes, self.device, self.folder = codes, device, config.output / FOLDER
        self.tokenizer = load_tokenizer(config.tokenizer, device)
        checkpoint.verify(self.tokenizer.codebook.digest, "the tokenizer", len(self.tokenizer.codebook))
        self.settings = SampleConfig(
            checkpoint=config.output,
            tokenizer=config.tokenizer,
            output=self.folder,
            cfg_scale=config.cfg_scale,
            seed=config.seed,
            precision=config.precision,
            compile=False,  # takes longer than a picture
        )

    def draw(self, checkpoint: Checkpoint, step: int) -> np.ndarray:
        """Draw the picture of a step; its images, uint8 (n, H, W, 3). The checkpoint's model is used up."""
        self.folder.mkdir(exist_ok=True)
        show = self._refined if checkpoint.config.objective == "refine" else self._sampled
        return show(checkpoint, self.folder / f"{step:08d}.png")

    def _sampled(self, checkpoint: Checkpoint, path: Path) -> np.ndarray:
        """Some samples of some classes: those that the verb `sample` makes of these classes alone."""
        maker = Maker.around(self.settings, self.device, checkpoint, self.tokenizer)
        chosen = np.unique(np.linspace(0, len(self.codes.class_names) - 1, _N_CLASSES).astype(np.int64))
        conditions = replace(maker.conditions, chosen=chosen)
        maker, indices = replace(maker, conditions=conditions), range(len(chosen) * _N_OF_EACH)
        tile = tile_size(checkpoint.config.model, self.device, len(indices))
        images = np.concatenate(list(in_tiles(maker.images, indices, tile, len(indices), self.device)))
        write_grid(path, images.__getitem__, conditions.numbers(np.array(indices)), conditions.names)
        return images

    @torch.inference_mode()
    def _refined(self, checkpoint: Checkpoint, path: Path) -> np.ndarray:
        """Images as their codes have them, with a token of each cluster picked blindly, and with those refined."""
        prior, indices = checkpoint.prior, np.arange(min(_N_OF_EACH, len(self.codes)))
        assert prior is not None
        classes, tokens = read_batch(self.codes, indices * len(self.codes) // len(indices), 0)
        draws = uniforms_of(self.settings.seed, indices, (2, tokens.shape[1]))
        clusters = prior.token_to_cluster[tokens.numpy()]
        picked = torch.from_numpy(prior.pick_tokens_at(clusters, draws[:, 0]))
        labels, live = prior.token_to_cluster, prior.live
        here = [torch.from_numpy(each).to(self.device) for each in (clusters, draws[:, 1], labels, live)]
        refined = refine(checkpoint.model, classes.to(self.device), here[0], here[1], here[2], here[3])
        images = np.stack([self._decode(each) for each in (tokens, picked, refined)])
        image_grid(images, ["images", "picked blindly", "refined"], path)
        return images.reshape(-1, *images.shape[2:])

    def _decode(self, tokens: Tensor) -> np.ndarray:
        decoded = self.tokenizer.decode(tokens.to(self.device), self.codes.grid)
        return to_pixels(decoded, self.tokenizer.pixel_range)
