"""Images to codes: `codeprior encode` beside LlamaGen's extraction loop, with the same weights, on the CPU.

Run: python benchmarks/bench_encoding.py [--original LLAMAGEN] [--images FOLDER] [--n-images 4] [--repeats 5]

LLAMAGEN is a copy of https://github.com/FoundationVision/LlamaGen; without it only our rows are measured. Its script
demands CUDA, so its loop is repeated here as it runs on one device: its own centre crop and model, one image's ten
crops a forward pass, a file for the codes and one for the label. Its ten crops are torchvision's, which are cut here
with Pillow. Both decode, crop, encode and write; both are called in turn in one process, on all cores it may use. Ours
loads the tokenizer within the clock, theirs has it already. Memory is what a first call holds at most beyond what was
held before it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import interleaved, median, peak_over_now, write_results
from PIL import Image

from codeprior import embedded
from codeprior.codes import CodeStore
from codeprior.config import EncodeConfig
from codeprior.encoding import encode
from codeprior.tokenizers.vqgan import PRESETS, VQGAN, VQGANTokenizer

IMAGE_SIZE, CROP_RANGE = 256, 1.1
N_IMAGENET = 1_281_167


def make_tokenizer(folder: Path) -> VQGAN:
    """Write VQ-16 with random weights as a tokenizer's folder; return it."""
    torch.manual_seed(0)
    model = VQGAN(PRESETS["VQ-16"]).eval().requires_grad_(False)
    VQGANTokenizer(model, IMAGE_SIZE).save_pretrained(folder)
    return model


def make_images(folder: Path, source: Path | None, n_images: int) -> list[Path]:
    """Copy images into one class folder: the first of a folder's, or scikit-image's photographs."""
    if source is None:
        import skimage

        found = [Path(skimage.__file__).parent / "data" / name for name in embedded.PHOTOS]
    else:
        found = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpeg", ".jpg", ".png"))
    (folder / "all").mkdir(parents=True)
    copies = [Path(shutil.copy(path, folder / "all" / path.name)) for path in found[:n_images]]
    return sorted(copies, key=lambda path: path.as_posix())


def originals(root: Path, model: VQGAN) -> tuple[torch.nn.Module, Callable[[Image.Image, int], Image.Image]]:
    """LlamaGen's model with our weights, and its centre crop."""
    sys.path.insert(0, str(root))
    theirs = importlib.import_module("tokenizer.tokenizer_image.vq_model").VQ_models["VQ-16"](
        codebook_size=16384, codebook_embed_dim=8
    )
    left_out = theirs.load_state_dict(model.state_dict(), strict=False)
    assert left_out.missing_keys == ["quantize.codebook_used"], left_out  # a buffer of its training
    return theirs.eval(), importlib.import_module("dataset.augmentation").center_crop_arr


def ten_crop(image: Image.Image, size: int) -> list[Image.Image]:
    """What torchvision's TenCrop gives, by Pillow."""
    crops = []
    for whole in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        right, bottom = whole.width - size, whole.height - size
        middle = (round(right / 2), round(bottom / 2))
        for left, top in [(0, 0), (right, 0), (0, bottom), (right, bottom), middle]:
            crops.append(whole.crop((left, top, left + size, top + size)))
    return crops


def extract_like_llamagen(
    images: list[Path], model: torch.nn.Module, crop: Callable[[Image.Image, int], Image.Image], output: Path
) -> None:
    """One image a time: ten crops, ToTensor and Normalize, encode, two files."""
    folders = [output / f"imagenet{IMAGE_SIZE}_{kind}" for kind in ("codes", "labels")]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, path in enumerate(images):
        with Image.open(path) as file:
            square = crop(file.convert("RGB"), int(IMAGE_SIZE * CROP_RANGE))
        crops = [
            torch.from_numpy(np.array(part)).permute(2, 0, 1).contiguous() for part in ten_crop(square, IMAGE_SIZE)
        ]
        batch = torch.stack([part.float().div(255) for part in crops]).sub_(0.5).div_(0.5)
        with torch.no_grad():
            _, _, (_, _, indices) = model.encode(batch)
        np.save(folders[0] / f"{number}.npy", indices.reshape(1, 10, -1).numpy())
        np.save(folders[1] / f"{number}.npy", np.array([0]))


def folder_size(folder: Path) -> tuple[int, int]:
    """Bytes and number of the files below a folder, hidden ones left out."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return sum(path.stat().st_size for path in files), len(files)


def measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Time both, compare their codes, weigh their files."""
    model = make_tokenizer(root / "tokenizer")
    images = make_images(root / "images", options.images, options.n_images)
    ours, theirs = root / "store", root / "llamagen"

    def run_ours() -> None:
        shutil.rmtree(ours, ignore_errors=True)
        encode(
            EncodeConfig(
                data=str(root / "images"),
                tokenizer=root / "tokenizer",
                output=ours,
                views="ten-crop-1.1",
                device="cpu",
            )
        )

    functions: dict[str, Callable[[], None]] = {"ours": run_ours}
    if options.original:
        original, crop = originals(options.original, model)

        def run_theirs() -> None:
            shutil.rmtree(theirs, ignore_errors=True)
            extract_like_llamagen(images, original, crop, theirs)

        functions["llamagen"] = run_theirs
    peaks = {f"{name} peak bytes": peak_over_now(function) for name, function in functions.items()}  # imports, too
    times = interleaved(functions, options.repeats)
    row: dict[str, Any] = {"n_images": len(images), "views": 10, "threads": torch.get_num_threads(), "times_s": times}
    row |= {f"{name} images_per_s": round(len(images) / median(times[name]), 4) for name in functions} | peaks
    row |= dict(zip(("ours bytes", "ours files"), folder_size(ours), strict=True))
    row["ours codes.npy bytes"] = (ours / "codes.npy").stat().st_size
    row["packed bytes"] = len(images) * 10 * (IMAGE_SIZE // 16) ** 2 * 2  # 16,384 codes fit into two bytes
    row["packed bytes of ImageNet"] = N_IMAGENET * row["packed bytes"] // len(images)
    if options.original:
        row |= dict(zip(("llamagen bytes", "llamagen files"), folder_size(theirs), strict=True))
        row["llamagen files of ImageNet"] = 2 * N_IMAGENET
        stored = CodeStore.open(ours).codes
        written = [np.load(theirs / f"imagenet{IMAGE_SIZE}_codes" / f"{i}.npy")[0] for i in range(len(images))]
        row["equal codes"] = float((stored == np.stack(written)).mean())
        row["times faster"] = round(median(times["llamagen"]) / median(times["ours"]), 3)
        row["times faster, cpu"] = round(median(times["llamagen cpu"]) / median(times["ours cpu"]), 3)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--original", type=Path, help="a copy of LlamaGen's repository")
    parser.add_argument("--images", type=Path, help="images to encode; default: scikit-image's photographs")
    parser.add_argument("--n-images", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ["CODEPRIOR_PROGRESS"] = "0"
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stdout(sys.stderr):  # the original prints
        row = {"name": "vq-16 ten crops", **measure(Path(root), options)}
    for name, value in row.items():
        print(f"{name:28}{value}")
    if options.original:
        given = f"--original LlamaGen --n-images {options.n_images} --repeats {options.repeats}"
        print(write_results("encoding", f"python benchmarks/bench_encoding.py {given}", [row]))


if __name__ == "__main__":
    main()
