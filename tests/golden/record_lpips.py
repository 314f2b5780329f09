"""Record what the lpips package gives for weights that follow from their names: `lpips_io.npz`.

lpips (0.1.4, a copy of its repository) takes its networks from torchvision, in whose place stand the same layers here.
Run, in an environment with torch and without torchvision:

    PYTHONPATH=PERCEPTUAL_SIMILARITY:tests python tests/golden/record_lpips.py
"""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn

from recorded import lpips_pairs, lpips_weight

VGG = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def vgg16():
    """The layers of torchvision's vgg16().features."""
    layers, n_in = [], 3
    for width in VGG:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(n_in, width, 3, padding=1), nn.ReLU(inplace=True)]
            n_in = width
    return nn.Sequential(*layers)


def alexnet():
    """The layers of torchvision's alexnet().features."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
    )


def named(module, prefix):
    """Give a module the weights of its names."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(lpips_weight(prefix + name, tuple(tensor.shape)))
    return module


def main():
    models = {"vgg": vgg16, "alex": alexnet}
    sys.modules["torchvision"] = torchvision = MagicMock()
    sys.modules["torchvision.models"] = torchvision.models
    for name, attribute in (("vgg", "vgg16"), ("alex", "alexnet")):
        features = named(models[name](), "features.")
        setattr(torchvision.models, attribute, lambda pretrained, features=features: SimpleNamespace(features=features))
    for name in ("skimage", "skimage.measure", "IPython", "cv2"):
        sys.modules[name] = MagicMock()
    import lpips

    arrays = {}
    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in lpips_pairs())
    for name in models:
        metric = lpips.LPIPS(net=name, pretrained=False, verbose=False)
        for number, head in enumerate(metric.lins):
            weight = head.model[1].weight
            weight.data = lpips_weight(f"lin{number}.model.1.weight", tuple(weight.shape))
        with torch.no_grad():
            arrays[name] = metric(a, b).flatten().numpy()
    np.savez(Path(__file__).with_name("lpips_io.npz"), **arrays)
    print(arrays)


if __name__ == "__main__":
    main()
