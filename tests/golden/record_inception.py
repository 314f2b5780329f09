"""Record what torch-fidelity's Inception gives for weights that follow from their names: `inception_io.npz`.

torch-fidelity (0.4.0, a copy of its repository) imports torchvision, of which this needs nothing, so an empty one is
put in its place. Run, in an environment with torch and without torchvision:

    PYTHONPATH=TORCH_FIDELITY:tests python tests/golden/record_inception.py
"""

import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch

from recorded import inception_images, inception_weight

SIZES = (32, 75, 256, 299, 384)


def original():
    """torch-fidelity's extractor with the weights of their names instead of downloaded ones."""
    for name in ("", ".transforms", ".transforms.functional", ".datasets", ".models"):
        sys.modules[f"torchvision{name}"] = MagicMock()
    from torch_fidelity import feature_extractor_inceptionv3 as module

    extractor = module.FeatureExtractorInceptionV3
    module.load_state_dict_from_url = lambda *arguments, **settings: {}
    extractor.load_state_dict = lambda self, state: None
    model = extractor("", ["2048", "logits_unbiased"])
    del extractor.load_state_dict
    state = model.state_dict()
    for name, tensor in state.items():
        tensor.copy_(inception_weight(name, tuple(tensor.shape)))
    return model, {name: list(tensor.shape) for name, tensor in state.items()}


def main():
    model, shapes = original()
    spatial = []
    model.Mixed_6d.branch1x1.register_forward_hook(lambda module, given, made: spatial.append(made))
    arrays = {"names": np.array(list(shapes)), "shapes": np.array([str(shape) for shape in shapes.values()])}
    for size in SIZES:
        with torch.no_grad():
            pool, logits = model(torch.from_numpy(inception_images(size)).permute(0, 3, 1, 2))
        maps = spatial.pop()[:, :7].permute(0, 2, 3, 1).flatten(1)
        found = {"pool": pool, "spatial": maps, "logits": logits}
        arrays |= {f"{name}_{size}": values.numpy().astype(np.float32) for name, values in found.items()}
    np.savez_compressed(Path(__file__).with_name("inception_io.npz"), **arrays)


if __name__ == "__main__":
    main()
