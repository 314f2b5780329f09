"""What tests of recorded or foreign files share: weights that follow from their names, torch files in both formats."""

import json
import zlib
from pathlib import Path

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


def write_inception(path):
    """The file of torch-fidelity, with the weights of its names."""
    with np.load(Path(__file__).parent / "golden" / "inception_io.npz") as arrays:
        shapes = dict(zip(arrays["names"], map(json.loads, arrays["shapes"]), strict=True))
    save_zip({str(name): inception_weight(str(name), tuple(shape)) for name, shape in shapes.items()}, path)


def inception_images(size, n_images=2):
    """Random squares of `size` pixels with structure at all scales: uint8 (n_images, size, size, 3)."""
    generator = np.random.default_rng(size)
    images = generator.uniform(0, 255, (n_images, size, size, 3))
    images[0] *= np.linspace(0, 1, size)[:, None, None]
    images[1:, size // 3 :] = generator.uniform(0, 255, (1, 1, 3))
    return images.astype(np.uint8)


LPIPS_FILES = {"vgg": ("vgg16-397923af.pth", "vgg.pth"), "alex": ("alexnet-owt-7be5be79.pth", "alex.pth")}
# Shapes of torchvision's convolutions up to the last that is looked at, by their numbers; those are looked at.
_VGG = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
_VGG |= {17: (512, 256), **dict.fromkeys((19, 21, 24, 26, 28), (512, 512))}
_LAYERS = {
    "vgg": {number: (*shape, 3, 3) for number, shape in _VGG.items()},
    "alex": {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)},
}
_WIDTHS = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


def write_lpips(folder, net):
    """The two files of LPIPS by a network, with the weights of their names and a part that LPIPS has no use for."""
    folder.mkdir(exist_ok=True)
    shapes = {"classifier.0.weight": (3, 3)}
    for number, shape in _LAYERS[net].items():
        shapes |= {f"features.{number}.weight": shape, f"features.{number}.bias": shape[:1]}
    layers = {f"lin{number}.model.1.weight": (1, width, 1, 1) for number, width in enumerate(_WIDTHS[net])}
    for save, names, file in ((save_zip, shapes, LPIPS_FILES[net][0]), (save_legacy, layers, LPIPS_FILES[net][1])):
        save({name: lpips_weight(name, shape) for name, shape in names.items()}, folder / file)


def lpips_weight(name, shape):
    """A weight of LPIPS by its name: as `inception_weight`; those of the layers, "lin", are not below zero."""
    weight = inception_weight(name, shape)
    return weight.abs() if name.startswith("lin") else weight


def lpips_pairs():
    """Three images and what became of them, uint8 (3, 64, 64, 3) twice: noise, another picture, nothing."""
    originals = inception_images(64, 3)
    noise = np.random.default_rng(0).normal(0, 20, originals.shape)
    images = np.clip(originals + noise, 0, 255).astype(np.uint8)
    images[1] = originals[0]
    images[2] = originals[2]
    return originals, images
