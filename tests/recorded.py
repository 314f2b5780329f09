"""What tests of recorded or foreign files share: weights that follow from their names, torch files in both formats."""

import zlib

import numpy as np
import torch


def weight_named(name, shape):
    """Standard normal, seeded by the name; over the root of the inputs of an output, or a tenth of it for vectors."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
        return torch.from_numpy(z / np.float32(np.sqrt(np.prod(shape[1:]))))
    return torch.from_numpy(1 + np.float32(0.1) * z if name.endswith("weight") else np.float32(0.1) * z)


def rebuild(model):
    """Give a module, which may be on the meta device, the weights of its names; ready to compute."""
    weights = {name: weight_named(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def save_zip(tree, path):
    """Write a tree as torch does today."""
    torch.save(tree, path)


def save_legacy(tree, path):
    """Write a tree as torch did before 1.6."""
    torch.save(tree, path, _use_new_zipfile_serialization=False)


def inception_weight(name, shape):
    """A weight of Inception by its name: as `weight_named`, of a scale that survives some fifty rectified layers."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    if name.endswith("running_var"):
        return 1 + weight_named(name, shape)
    return weight_named(name, shape) * (2**0.5 if len(shape) == 4 else 1)


def inception_images(size, n_images=2):
    """Random squares of `size` pixels with structure at all scales: uint8 (n_images, size, size, 3)."""
    generator = np.random.default_rng(size)
    images = generator.uniform(0, 255, (n_images, size, size, 3))
    images[0] *= np.linspace(0, 1, size)[:, None, None]
    images[1:, size // 3 :] = generator.uniform(0, 255, (1, 1, 3))
    return images.astype(np.uint8)
