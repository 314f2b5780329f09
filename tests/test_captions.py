"""Captions: features that a text encoder made, read from what is on disk, padded at the left as LlamaGen's."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from codeprior.artifact import Workspace, read_manifest
from codeprior.captions import Captions, read_captions
from codeprior.checkpoint import CheckpointConfig, save_checkpoint
from codeprior.config import SampleConfig
from codeprior.errors import InputError
from codeprior.generation.conditions import Conditions
from codeprior.generation.decoding import Decoding
from codeprior.generation.guidance import Guidance
from codeprior.generation.sample import sample
from codeprior.generation.sequence import generate
from codeprior.losses import cross_entropy_nats
from codeprior.model import ModelConfig, Transformer, visible
from codeprior.tensors import on_meta
from codeprior.tokenizers import load_tokenizer
from recorded import rebuild

GOLDEN = Path(__file__).parent / "golden"
SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 96, "grid": (4, 4), "ffn_multiple": 32}


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN / "llamagen_t2i_tiny_io.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="module")
def original():
    with on_meta():
        model = Transformer(ModelConfig(n_classes=0, caption_dim=24, caption_slots=12, **SIZES))
    return rebuild(model)


@pytest.fixture(scope="module")
def captions(recorded):
    return Captions(recorded["features"], recorded["lengths"])


def test_teacher_forced_logits_and_loss_are_llamagens(original, recorded, captions):
    with torch.inference_mode():
        logits = original(captions, recorded["tokens"][:, :-1])
    # 1e-5: other CPUs multiply matrices in another order
    torch.testing.assert_close(logits, recorded["teacher_forced_logits"], rtol=1e-5, atol=1e-5)
    assert float(cross_entropy_nats(logits, recorded["tokens"])) == pytest.approx(float(recorded["loss"]), abs=1e-5)


@pytest.mark.parametrize(("scale", "interval"), [(1.0, -1), (1.5, -1), (4.0, -1), (7.5, -1), (4.0, 5)])
def test_greedy_decoding_is_llamagens(original, recorded, captions, scale, interval):
    name = f"greedy_cfg_{scale}" + (f"_interval_{interval}" if interval >= 0 else "")
    guidance = Guidance(scale, interval=interval)
    tokens = generate(original, captions, torch.zeros(3, 16, dtype=torch.float64), Decoding(top_k=1), guidance)
    assert torch.equal(tokens, recorded[name])


def test_what_an_empty_slot_holds_changes_nothing(original, recorded, captions):
    features = captions.features.clone()
    features[2, :11] = 5.0
    with torch.inference_mode():
        logits = original(Captions(features, captions.lengths), recorded["tokens"][:, :-1])
    torch.testing.assert_close(logits, recorded["teacher_forced_logits"], rtol=1e-5, atol=1e-5)


def test_a_position_sees_itself_and_what_is_before_it_but_no_empty_slot():
    seen = visible(torch.tensor([0, 2]), 0, 4)[:, 0].int().tolist()
    assert seen[0] == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert seen[1] == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert visible(torch.tensor([2]), 3, 1)[0, 0].int().tolist() == [[0, 0, 1, 1]]


def test_the_layout_is_that_of_llamagens_text_conditional_model():
    with on_meta():
        model = Transformer(ModelConfig(n_classes=0, caption_dim=2048, **SIZES))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "cls_embedding" in name}
    assert shapes == {
        "cls_embedding.cap_proj.fc1.weight": (64, 2048),
        "cls_embedding.cap_proj.fc2.weight": (64, 64),
        "cls_embedding.uncond_embedding": (120, 2048),
    }


def test_a_model_with_captions_starts_with_every_token_alike(captions):
    model = Transformer(ModelConfig(n_classes=0, caption_dim=24, caption_slots=12, **SIZES), torch.Generator())
    tokens = torch.arange(48).reshape(3, 16)
    with torch.inference_mode():
        loss = cross_entropy_nats(model.eval()(captions, tokens[:, :-1]), tokens)
    assert float(loss) == pytest.approx(np.log(96), abs=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"n_classes": 3, "caption_dim": 8}, "a model with captions has no classes"),
        ({"n_classes": 0, "caption_dim": 8, "causal": False}, "a model with captions has no classes"),
        ({"n_classes": 0}, "every size of a model must be positive"),
        ({"n_classes": 0, "caption_dim": 8, "caption_slots": 0}, "every size of a model must be positive"),
        ({"n_classes": 3, "positions": "none"}, "positions must be rotary or learned, got none"),
    ],
)
def test_an_impossible_condition_is_refused(sizes, message):
    with pytest.raises(InputError, match=message):
        ModelConfig(**{**SIZES, **sizes})


def feature_rows(*lengths):
    generator = np.random.default_rng(0)
    return [generator.standard_normal((length, 6)).astype(np.float32) for length in lengths]


def test_masked_features_are_moved_to_the_right_whichever_side_the_padding_was_on(tmp_path):
    long, short = feature_rows(4, 2)
    features, mask = np.zeros((2, 4, 6), np.float16), np.ones((2, 4))
    features[0], features[1, :2], mask[1, 2:] = long, short, 0
    np.savez(tmp_path / "right.npz", features=features, mask=mask, captions=["a cat", "two"])
    np.savez(tmp_path / "left.npz", features=np.stack([features[0], np.roll(features[1], 2, 0)]), mask=mask[:, ::-1])
    right, left = (read_captions(tmp_path / f"{side}.npz") for side in ("right", "left"))
    assert right.names == ("a cat", "two")
    assert right.digest == left.digest
    padded = left.padded(5, 6)
    assert padded.lengths.tolist() == [4, 2]
    assert not padded.features[1, :3].any()
    np.testing.assert_allclose(padded.features[1, 3:], short, atol=2e-3)  # float16


def test_llamagens_own_files_are_read_in_the_order_of_their_numbers(tmp_path):
    rows = feature_rows(*range(1, 12))
    for number, row in enumerate(rows):
        np.save(tmp_path / f"{number}.npy", row[None])
    found = read_captions(tmp_path)
    assert [len(row) for row in found.rows] == list(range(1, 12))
    padded = found.padded(8, 6)
    assert padded.lengths.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8]
    assert np.array_equal(padded.features[10], rows[10][:8])  # training takes the first tokens of a long caption


def test_features_that_cannot_be_captions_are_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "none.npz", other=np.zeros(3))
    np.savez(tmp_path / "mask.npz", features=np.zeros((2, 3, 4)), mask=np.ones((2, 2)))
    np.savez(tmp_path / "empty.npz", features=np.zeros((2, 3, 4)), mask=np.array([[1, 1, 1], [0, 0, 0]]))
    np.save(tmp_path / "whole.npy", np.zeros((2, 3, 4), np.int64))
    np.save(tmp_path / "nan.npy", np.full((2, 3), np.nan))
    (tmp_path / "junk.npy").write_bytes(b"junk")
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "folder").mkdir()
    messages = {
        "none.npz": "must hold `features`",
        "mask.npz": r"but a mask \(2, 2\)",
        "empty.npz": "caption 1 of .* has no token",
        "whole.npy": r"must hold features \(N, L, C\) of floats, got int64",
        "nan.npy": "numbers that are not finite",
        "junk.npy": "is it a complete .npy file",
        "junk.npz": "is the file complete",
        "folder": "holds no captions",
        "nowhere": "there is no such file or folder",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            read_captions(tmp_path / name)
    np.save(tmp_path / "good.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(InputError, match="features of 3 numbers, the model takes 2048"):
        read_captions(tmp_path / "good.npy").padded(120, 2048)
    with pytest.raises(InputError, match="must have 1 to 3 tokens"):
        Captions(torch.zeros(1, 3, 4), torch.tensor([4]))
    with pytest.raises(InputError, match=r"captions are features \(B, P, C\)"):
        Captions(torch.zeros(1, 3), torch.tensor([3]))


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    """A text-conditional transformer of the tiny tokenizer's codes, with weights that follow from their names."""
    tokenizer = load_tokenizer(tiny / "tokenizer")
    model = Transformer(ModelConfig(n_classes=0, caption_dim=6, caption_slots=4, **{**SIZES, "vocab_size": 32}))
    config = CheckpointConfig(
        model=model.config,
        class_names=(),
        image_size=16,
        codebook_size=32,
        codebook_digest=tokenizer.codebook.digest,
        tokenizer_digest=tokenizer.digest,
        objective="token",
    )
    with Workspace(tmp_path_factory.mktemp("t2i") / "gpt", kind="checkpoint", settings={}, inputs={}) as workspace:
        workspace.finish(save_checkpoint(workspace.folder, rebuild(model).state_dict(), config, None), {})
    return workspace.folder


def test_images_are_sampled_from_captions_in_equal_shares(tiny, checkpoint, tmp_path):
    long, short = feature_rows(4, 2)
    features = np.stack([long, np.pad(short, ((0, 2), (0, 0)))])
    np.savez(tmp_path / "captions.npz", features=features, mask=[[1, 1, 1, 1], [1, 1, 0, 0]], captions=["a", "b"])
    given = {"checkpoint": checkpoint, "tokenizer": tiny / "tokenizer", "device": "cpu", "n_images": 5}
    config = SampleConfig(**given, output=tmp_path / "samples", captions=tmp_path / "captions.npz")
    assert sample(config)["n_images"] == 5
    with np.load(tmp_path / "samples" / "samples.npz") as arrays:
        assert arrays["arr_0"].shape == (5, 16, 16, 3)
        assert np.bincount(arrays["arr_1"]).tolist() == [3, 2]
    assert "captions" in read_manifest(tmp_path / "samples").inputs
    np.save(tmp_path / "other.npy", long)
    with pytest.raises(InputError, match="made from other inputs"):
        sample(SampleConfig(**given, output=tmp_path / "samples", captions=tmp_path / "other.npy"))
    with pytest.raises(InputError, match="this checkpoint takes captions; give their features as --captions"):
        sample(SampleConfig(**given, output=tmp_path / "none"))


def test_a_class_conditional_checkpoint_takes_no_captions():
    config = SimpleNamespace(model=ModelConfig(n_classes=3, **SIZES), class_names=("a", "b", "c"))
    captions = SimpleNamespace(captions=Path("captions.npz"))
    with pytest.raises(InputError, match="this checkpoint takes classes, not captions"):
        Conditions.of(SimpleNamespace(config=config), captions, None, torch.device("cpu"))
