"""What images are judged by, computed once: verb `reference`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from codeprior.artifact import Workspace
from codeprior.config import ReferenceConfig
from codeprior.device import resolve_device
from codeprior.errors import InputError
from codeprior.evaluation.extraction import Extraction, Judged
from codeprior.evaluation.networks import load_network, space_of
from codeprior.evaluation.scores import Space
from codeprior.evaluation.sources import NOTE, REFERENCE, Images, Source, note_array, open_source, statistics_arrays
from codeprior.npz import Stream, write_npz
from codeprior.parts import waiting
from codeprior.shards import Shard

_IMAGES_AT_ONCE = 256


def reference(config: ReferenceConfig) -> dict[str, Any]:
    """Compute statistics of real images and the features of some, and leave a reference folder.

    Its `reference.npz` has the keys of ADM's reference batches, so that others' evaluators read it: arr_0 (some images,
    in an order drawn by the seed), mu, sigma and, of Inception, mu_s, sigma_s (of all images); besides, the features of
    arr_0, and a note of what it is. Statistics that the data come with, as ADM's batches do, stay as they are.

    Where RANK and WORLD_SIZE are set, as by `torchrun`, the processes share the work. A killed run is continued.

    Returns
    -------
    dict
        output, feature_network, purpose, n_images (of the statistics, where known), n_kept, image_size.

    Raises
    ------
    InputError
        If the images or the network cannot be read or do not fit together.
    """
    shard, device = Shard.from_environment(), resolve_device(config.device)
    source = open_source(config.data, config.image_size, seed=config.seed, bad_images=config.bad_images)
    if source.images is None:
        raise InputError(f"{config.data} holds no images; a reference is made of images, not of their features")
    network = load_network(
        config.features, device, inception_weights=config.inception_weights, download=config.download
    )
    with Workspace(
        config.output,
        kind="reference",
        settings=config.settings(),
        inputs={"images": source.digest, "features": network.digest},
        overwrite=config.overwrite,
        shard=shard,
    ) as workspace:
        if not workspace.complete:
            extraction = Extraction(workspace, "images", source, network, batch_size=config.batch_size, device=device)
            extraction.make_share()
            with workspace.alone():
                if not workspace.complete and not extraction.is_missing:
                    results = _write(workspace, config, source, space_of(network), extraction.judged())
                    workspace.finish([REFERENCE], results)
                    extraction.remove()
        results = waiting(shard) if workspace.manifest is None else workspace.manifest.results
        return {"output": str(config.output), **results}


def _write(
    workspace: Workspace, config: ReferenceConfig, source: Source, space: Space, images: Judged
) -> dict[str, Any]:
    assert images.features is not None
    assert source.images is not None
    n_images = None if source.statistics else len(images)
    kept = np.random.default_rng(config.seed).permutation(len(images))[: config.n_kept]
    statistics = {"features": images.gaussian}
    if images.spatial_gaussian is not None:
        statistics["spatial"] = images.spatial_gaussian
    note = {
        "purpose": config.purpose,
        "space": space.note(),
        "images": source.name,
        "images_digest": source.digest,
        "n_images": n_images,
        "image_size": source.image_size,
    }
    shape = (len(kept), source.images.size, source.images.size, 3)
    arrays: dict[str, np.ndarray | Stream] = {
        "arr_0": Stream(shape, np.dtype(np.uint8), _pieces(source.images, kept)),
        **statistics_arrays(statistics),
        "features": images.features[kept],
        NOTE: note_array({name: value for name, value in note.items() if value is not None}),
    }
    if source.labels is not None:
        arrays["arr_1"] = source.labels[kept]
    write_npz(workspace.path(REFERENCE), arrays)
    described = {"feature_network": space.name, "purpose": config.purpose, "n_images": n_images}
    return described | {"n_kept": len(kept), "image_size": source.image_size}


def _pieces(images: Images, indices: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(indices), _IMAGES_AT_ONCE):
        yield images.read(indices[start : start + _IMAGES_AT_ONCE])
