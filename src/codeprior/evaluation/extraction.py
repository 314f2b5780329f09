"""Rows of features of a set of images, made by any number of processes, any of which may be killed and run again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from codeprior.artifact import Workspace
from codeprior.errors import InputError
from codeprior.evaluation.features import FeatureNetwork
from codeprior.evaluation.sources import Images, Source
from codeprior.evaluation.statistics import Gaussian
from codeprior.parts import Parts, Rows, read_ahead

# Pixels a forward pass, by device: 11 or 375 images of 299 x 299.
_PIXELS_AT_ONCE = {"cpu": 2**20, "cuda": 2**25}
_MOST_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Judged:
    """A set of images as a feature network sees it.

    `features` (N, F) and `spatial` (N, S) are float32 and may be mapped from disk; `probabilities` (N, C) and `labels`
    (N,) are None where the network or the set has none. Statistics that the source came with stand for more images than
    are at hand, and are used in place of these images'.
    """

    source: Source
    features: np.ndarray | None = None
    spatial: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    labels: np.ndarray | None = None
    knows_labels: bool = False
    """Whether the classes of the probabilities are those of the labels."""

    def __len__(self) -> int:
        return 0 if self.features is None else len(self.features)

    @cached_property
    def gaussian(self) -> Gaussian:
        """Of the features: as given, else fitted."""
        return self._gaussian("features", self.features)

    @cached_property
    def spatial_gaussian(self) -> Gaussian | None:
        """Of the spatial features; None where there are none."""
        has_any = self.spatial is not None or "spatial" in self.source.statistics
        return self._gaussian("spatial", self.spatial) if has_any else None

    def _gaussian(self, which: str, features: np.ndarray | None) -> Gaussian:
        if which in self.source.statistics:
            return self.source.statistics[which]
        if features is None:
            raise InputError(f"{self.source.name} has neither images nor statistics to judge by")
        return Gaussian.of(features)

    def take(self, indices: np.ndarray) -> Judged:
        """Some of the images, on their own: without the statistics that the whole set came with."""

        def some(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[indices]

        source = Source(self.source.name, self.source.digest)
        arrays = some(self.features), some(self.spatial), some(self.probabilities), some(self.labels)
        return Judged(source, *arrays, knows_labels=self.knows_labels)


class Extraction:
    """The rows of a set of images, one part of the work of several processes that share a workspace."""

    def __init__(
        self,
        workspace: Workspace,
        name: str,
        source: Source,
        network: FeatureNetwork,
        *,
        batch_size: int | None,
        device: torch.device,
        indices: np.ndarray | None = None,
    ) -> None:
        """Of the images with these `indices`, or all. `name` is the set's own in the workspace."""
        assert source.images is not None
        self.source, self.network, self.workspace, self.name = source, network, workspace, name
        self.images = source.images
        self.indices = np.arange(self.images.n_images) if indices is None else indices
        self.batch_size = batch_size or _batch_size(network.input_size or self.images.size, device)
        width = probe(network, self.images).shape[1]
        self.parts = Parts(workspace.path(f"parts-{name}"), len(self.indices), (width,), np.dtype(np.float32))

    def make_share(self) -> None:
        """Make what is missing of this process's share."""
        self.parts.make_share(self.workspace, self.batch_size, self._batches, f"judging {self.source.name}")

    @property
    def is_missing(self) -> bool:
        """Whether there are rows that no process has made yet."""
        return bool(self.parts.missing(range(self.parts.n_items)))

    def rows(self) -> np.ndarray:
        """All rows (N, W), float32, mapped from a file of the workspace."""
        return self.parts.assemble(self.workspace.path(f".rows-{self.name}.npy"))

    def judged(self) -> Judged:
        """The rows taken apart."""
        return judged_rows(self.rows(), self.source, self.network, self.indices)

    def remove(self) -> None:
        """Remove the rows, once the scores are written."""
        self.parts.remove()
        self.workspace.path(f".rows-{self.name}.npy").unlink(missing_ok=True)

    def _batches(self, run: range) -> Iterator[Rows]:
        def read(numbers: range) -> np.ndarray:
            return self.images.read(self.indices[numbers.start : numbers.stop])

        for pixels in read_ahead(read, run, self.batch_size):
            yield self.network.features(pixels), {}


def probe(network: FeatureNetwork, images: Images) -> np.ndarray:
    """The row of a set's first image: refuses images that the network does not take."""
    return network.features(images.read(np.zeros(1, dtype=np.int64)))


def judged_rows(rows: np.ndarray, source: Source, network: FeatureNetwork, indices: np.ndarray | None = None) -> Judged:
    """Rows (N, W) of a network taken apart: features, spatial features, class probabilities; with the labels."""
    n_features = network.n_features or rows.shape[1]
    features = rows[:, :n_features]
    spatial = rows[:, n_features:] if rows.shape[1] > n_features else None
    labels = source.labels
    if labels is not None and indices is not None:
        labels = labels[indices]
    return Judged(source, features, spatial, network.probabilities(features), labels, network.n_classes is not None)


def given_rows(source: Source) -> Judged:
    """A set whose features, or statistics alone, come from a file."""
    return Judged(source, source.features, source.spatial, source.probabilities, source.labels)


def _batch_size(image_size: int, device: torch.device) -> int:
    at_once = _PIXELS_AT_ONCE.get(device.type, _PIXELS_AT_ONCE["cuda"])
    return max(1, min(_MOST_AT_ONCE, at_once // image_size**2))
