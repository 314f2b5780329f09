"""Train the small classifier that generated images of one's own classes are judged by: verb `train-classifier`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from codeprior.artifact import Workspace
from codeprior.config import TrainClassifierConfig
from codeprior.crops import N_VIEWS, view
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.evaluation.features import extract_features
from codeprior.evaluation.metrics import class_consistency
from codeprior.evaluation.small_cnn import ClassifierFeatures, SmallCnn, SmallCnnConfig, save_classifier
from codeprior.images import ImageSet, open_images
from codeprior.pixels import to_tensor
from codeprior.progress import track

WEIGHT_DECAY = 1e-2
KEPT_BYTES = 2**30  # images are kept decoded up to this much, and read anew each time beyond it


def train_classifier(config: TrainClassifierConfig) -> dict[str, Any]:
    """Train a `SmallCnn` on images and leave a classifier folder; deterministic by seed on one device.

    Returns
    -------
    dict
        output, name, train_accuracy, heldout_accuracy (None without held-out images), n_classes, n_parameters.

    Raises
    ------
    InputError
        If the images cannot be read, or there are fewer than two classes.
    """
    device = resolve_device(config.device)
    images = open_images(config.data, bad_images=config.bad_images, seed=config.seed)
    heldout = config.heldout and open_images(config.heldout, bad_images=config.bad_images, seed=config.seed)
    if len(images.class_names) < 2:
        raise InputError(f"{config.data} holds one class; a classifier needs two or more")
    inputs = {"images": images.digest} | ({"heldout": heldout.digest} if heldout else {})
    with Workspace(
        config.output, kind="classifier", settings=config.settings(), inputs=inputs, overwrite=config.overwrite
    ) as workspace:
        if workspace.manifest is None:
            model = _train(images, config, device)
            files = save_classifier(model, workspace.folder)
            network = ClassifierFeatures(model, "", device)
            results = {
                "name": network.name,
                "train_accuracy": accuracy(network, images),
                "heldout_accuracy": accuracy(network, heldout) if heldout else None,
                "n_classes": len(images.class_names),
                "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
            }
            manifest = workspace.finish(files, results)
        else:
            manifest = workspace.manifest
        return {"output": str(manifest.folder), **manifest.results}


def accuracy(network: ClassifierFeatures, images: ImageSet, n_images: int = 2000, batch_size: int = 256) -> float:
    """Share of the images (evenly spaced, at most `n_images`) that the network puts in their class."""
    indices = np.unique(np.linspace(0, len(images) - 1, min(n_images, len(images))).astype(int))
    features = extract_features(network, lambda rows: images.read_many(rows, network.image_size), indices, batch_size)
    return class_consistency(network.probabilities(features), images.labels[indices])


def _train(images: ImageSet, config: TrainClassifierConfig, device: torch.device) -> SmallCnn:
    """Minimise the cross-entropy of random views of random images by AdamW, its rate decayed by a cosine."""
    shape = SmallCnnConfig(f"{images.name}-cnn", config.image_size, config.width, tuple(images.class_names))
    model = SmallCnn(shape)
    model.initialize(torch.Generator().manual_seed(config.seed))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    read = _reader(images, config.image_size)
    for step in track(range(config.steps), "training the classifier"):
        generator = np.random.default_rng([config.seed, step])
        indices = generator.integers(len(images), size=config.batch_size)
        which = generator.integers(N_VIEWS[config.views], size=config.batch_size)
        batch = np.stack([view(read(i), config.views, v) for i, v in zip(indices, which, strict=True)])
        labels = torch.from_numpy(images.labels[indices]).to(device)
        loss = F.cross_entropy(model(to_tensor(batch, device)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model


def _reader(images: ImageSet, image_size: int) -> Callable[[int], np.ndarray]:
    """Reads an image by index, from memory where all of them fit."""
    if len(images) * image_size**2 * 3 > KEPT_BYTES:
        return lambda index: images.read(int(index), image_size)
    pixels = images.read_many(np.arange(len(images)), image_size)
    return lambda index: pixels[index]
