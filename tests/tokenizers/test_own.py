"""A user's own class stands beside ours: every verb takes it, knowing no more than the protocol."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.cli import main
from codeprior.codebook import Codebook
from codeprior.codes import CodeStore
from codeprior.errors import InputError
from codeprior.images import open_images
from codeprior.own import is_own
from codeprior.pixels import to_tensor
from codeprior.tokenizers import Tokenizer, load_tokenizer

EXAMPLE = f"{Path(__file__).parents[2] / 'examples' / 'own_tokenizer.py'}:patches"
MODULE = """
import numpy as np, torch
from codeprior import Codebook

class Mine:  # inherits nothing
    image_size, pixel_range, digest = 8, (0.0, 1.0), "sha256:mine"
    codebook = Codebook(np.eye(4, 3, dtype=np.float32) + 0.1)
    device = None

    def grid(self, image_size):
        return 1, image_size // 4

    def encode(self, images):
        return torch.full((len(images), images.shape[-1] // 4), 3)

    def decode(self, codes, grid):
        return torch.full((len(codes), 3, 8, 8), 0.5)

    def to(self, device):
        self.device = device
        return self

class Half:
    codebook = image_size = None

mine, half, count = Mine, Half, 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    yield name
    sys.modules.pop(name, None)


def test_every_verb_takes_a_tokenizer_of_ones_own(tmp_path, capsys):
    given = ["--tokenizer", EXAMPLE, "--device", "cpu"]
    main(["encode", "--data", "digits:heldout", "--output", str(tmp_path / "codes"), *given])
    main(["verify-codes", str(tmp_path / "codes"), "--data", "digits:heldout", "--n-images", "8", *given])
    assert "these are the codes of these images" in capsys.readouterr().out
    prior = tmp_path / "prior.safetensors"
    main(["extract", EXAMPLE, "--usage", str(tmp_path / "codes"), "--output", str(prior)])
    replaced = ["--priors", str(prior), "--n-images", "20", "--output", str(tmp_path / "replaced")]
    main(["reconstruct", "--data", "digits:heldout", *replaced, *given])
    model = ["--steps", "2", "--batch-size", "8", "--device", "cpu", "--output", str(tmp_path / "model")]
    main(["train", "--codes", str(tmp_path / "codes"), "--prior", str(prior), *model])
    sampled = ["--n-images", "10", "--output", str(tmp_path / "samples")]
    main(["sample", "--checkpoint", str(tmp_path / "model"), *sampled, *given])
    with np.load(tmp_path / "samples" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (10, 16, 16, 3)


def test_its_pixels_go_in_and_come_out_in_its_own_range(tmp_path):
    main(["encode", "--data", "digits:heldout", "--tokenizer", EXAMPLE, "--output", str(tmp_path / "codes")])
    tokenizer = load_tokenizer(EXAMPLE)
    pixels = open_images("digits:heldout").read_many(np.arange(5), 16)
    codes = tokenizer.encode(to_tensor(pixels, pixel_range=(0.0, 1.0)))
    assert np.array_equal(CodeStore.open(tmp_path / "codes").codes[:5, 0], codes.numpy())
    assert not np.array_equal(CodeStore.open(tmp_path / "codes").codes[:5, 0], tokenizer.encode(to_tensor(pixels)))


def test_a_class_need_not_inherit_and_is_moved_where_it_can_be(module):
    tokenizer = load_tokenizer(f"{module}:mine")
    assert Tokenizer not in type(tokenizer).__mro__
    assert tokenizer.device == torch.device("cpu")
    assert tokenizer.digest == "sha256:mine"
    assert len(Codebook.load(f"{module}:mine")) == 4
    assert Codebook.load(f"{module}:mine", normalize=True).normalize


def test_one_that_inherits_is_named_by_its_codebook_unless_it_says_otherwise():
    tokenizer = load_tokenizer(EXAMPLE)
    assert tokenizer.digest == tokenizer.codebook.digest


def test_a_factory_that_is_not_there_or_lacks_something_is_said_in_one_line(module):
    messages = {
        f"{module}:half": "gives a Half without grid, encode, decode, pixel_range, digest; see",
        f"{module}:count": "has no function count",
        f"{module}:nothing": "has no function nothing",
        "no_such_module:make": "no module no_such_module; it must be installed, or below",
        "no_such_file.py:make": r"no such file: no_such_file\.py",
    }
    for source, message in messages.items():
        with pytest.raises(InputError, match=message):
            load_tokenizer(source)


def test_errors_of_the_users_own_code_come_as_they_are(module, tmp_path):
    (tmp_path / "broken.py").write_text("import not_installed_anywhere\n\ndef make(): pass\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_tokenizer(f"{tmp_path / 'broken.py'}:make")
    (tmp_path / "needs.py").write_text("import not_installed_anywhere")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load_tokenizer("needs:make")


@pytest.mark.parametrize(
    "source", ["runs/tokenizer", "hf:owner", "hf:owner/name", "vq.pt", "C:/vq.pt", "digits:held-out"]
)
def test_other_sources_are_not_taken_for_functions(source):
    assert not is_own(source)
