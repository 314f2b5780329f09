"""What is saved, pushed and loaded again is the same thing, checked by its digests; the hub is one of our own."""

import json
import shutil

import numpy as np
import pytest
import torch

from codeprior.artifact import read_manifest
from codeprior.checkpoint import Checkpoint, load_checkpoint
from codeprior.cli import main
from codeprior.codebook import Codebook
from codeprior.config import SampleConfig, TrainConfig
from codeprior.errors import InputError
from codeprior.generation.sample import sample
from codeprior.prior import CodebookPrior
from codeprior.sharing import push_folder
from codeprior.tokenizers import load_tokenizer
from codeprior.tokenizers.gigatok import GigaTokTokenizer
from codeprior.tokenizers.vqgan import VQGANTokenizer
from codeprior.training.loop import train
from hub_server import FakeHub


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    output = tmp_path_factory.mktemp("shared") / "gpt"
    config = {"codes": tiny / "codes", "prior": tiny / "prior.safetensors", "steps": 2, "batch_size": 16}
    train(TrainConfig(output=output, device="cpu", **config))
    return output


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = FakeHub()
    with hub.serve(monkeypatch, tmp_path / "cache"):
        yield hub


def sources(tiny, checkpoint):
    """Of each kind: how it is loaded, and from where."""
    return {
        "tokenizer": (VQGANTokenizer, tiny / "tokenizer"),
        "checkpoint": (Checkpoint, checkpoint),
        "prior": (CodebookPrior, tiny / "prior.safetensors"),
    }


@pytest.mark.parametrize("kind", ["tokenizer", "checkpoint", "prior"])
def test_what_is_saved_is_loaded_again_with_its_digest_and_a_card(tiny, checkpoint, tmp_path, kind):
    shared, source = sources(tiny, checkpoint)[kind]
    thing = shared.from_pretrained(source)
    manifest = thing.save_pretrained(tmp_path / "saved")
    again = shared.from_pretrained(tmp_path / "saved")
    assert again.digest == thing.digest
    assert manifest.kind == kind
    assert {"config.json"} < manifest.files.keys()
    card = (tmp_path / "saved" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: codeprior\n")
    assert "hf:OWNER/NAME" in card
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]  # no leftovers


def test_what_was_not_changed_keeps_what_is_known_of_its_making(tiny, checkpoint, tmp_path):
    for shared, source in (sources(tiny, checkpoint)[kind] for kind in ("tokenizer", "checkpoint")):
        before = read_manifest(source)
        after = shared.from_pretrained(source).save_pretrained(tmp_path / before.kind)
        assert (after.settings, after.inputs, after.results) == (before.settings, before.inputs, before.results)
        assert "| steps | 2 |" in (tmp_path / before.kind / "README.md").read_text()


def test_what_was_changed_in_memory_is_another_thing(tiny, tmp_path):
    tokenizer = VQGANTokenizer.from_pretrained(tiny / "tokenizer")
    with torch.no_grad():
        tokenizer.model.quant_conv.bias.add_(1)
    manifest = tokenizer.save_pretrained(tmp_path / "changed")
    assert manifest.digest != tokenizer.digest
    assert manifest.settings == {}
    assert manifest.results["n_parameters"] > 600_000


def test_a_thing_made_in_memory_has_a_digest_of_its_content(tiny):
    tokenizer = VQGANTokenizer.from_pretrained(tiny / "tokenizer")
    made = [VQGANTokenizer(tokenizer.model, size) for size in (16, 16, 32)]
    assert made[0].digest == made[1].digest != made[2].digest
    assert "quant_conv" not in repr(tokenizer)


def test_saving_refuses_a_folder_that_holds_something_else(tiny, checkpoint, tmp_path):
    tokenizer, prior = (sources(tiny, checkpoint)[kind] for kind in ("tokenizer", "prior"))
    first, other = tokenizer[0].from_pretrained(tokenizer[1]), prior[0].from_pretrained(prior[1])
    first.save_pretrained(tmp_path / "saved")
    first.save_pretrained(tmp_path / "saved")  # the same again
    with pytest.raises(InputError, match="holds another artifact; choose another folder, or replace it"):
        other.save_pretrained(tmp_path / "saved")
    assert other.save_pretrained(tmp_path / "saved", overwrite=True).kind == "prior"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is not empty and not codeprior's"):
        first.save_pretrained(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_tokenizer_of_another_family_is_not_taken_for_ones_own(tiny):
    with pytest.raises(InputError, match="holds a vqgan tokenizer, not a gigatok one"):
        GigaTokTokenizer.from_pretrained(tiny / "tokenizer")


@pytest.mark.parametrize("kind", ["tokenizer", "checkpoint", "prior"])
def test_what_is_pushed_comes_back_from_the_hub(tiny, checkpoint, hub, kind):
    shared, source = sources(tiny, checkpoint)[kind]
    thing = shared.from_pretrained(source)
    address = thing.push_to_hub("me/thing", private=True)
    assert address.startswith("https://huggingface.co/me/thing/commit/")
    assert hub.private == {"me/thing": True}
    assert {"README.md", "manifest.json", "config.json"} < hub.files("me/thing").keys()
    assert "hf:me/thing" in (card := hub.files("me/thing")["README.md"].decode()) or '"me/thing"' in card
    for name in ("me/thing", "hf:me/thing"):
        assert shared.from_pretrained(name).digest == thing.digest


def test_the_verbs_push_and_then_take_the_hub_for_a_folder(tiny, checkpoint, hub, tmp_path, capsys):
    for source, name in (
        (tiny / "tokenizer", "me/vq"),
        (checkpoint, "me/gpt"),
        (tiny / "prior.safetensors", "me/dcpe"),
    ):
        main(["push", str(source), name, "--message", "first"])
    assert hub.messages == ["first"] * 3
    given = {"n_images": 10, "device": "cpu"}
    sample(SampleConfig(checkpoint=checkpoint, tokenizer=tiny / "tokenizer", output=tmp_path / "here", **given))
    main(["sample", "--checkpoint", "hf:me/gpt", "--tokenizer", "hf:me/vq", "--n-images", "10", "--device", "cpu",
          "--output", str(tmp_path / "there")])  # fmt: skip
    assert read_manifest(tmp_path / "here").digest == read_manifest(tmp_path / "there").digest
    assert Codebook.load("hf:me/vq").digest == load_tokenizer(tiny / "tokenizer").codebook.digest
    assert CodebookPrior.load("hf:me/dcpe").digest == CodebookPrior.load("hf:me/dcpe/prior.safetensors").digest
    main(["train", "--codes", str(tiny / "codes"), "--prior", "hf:me/dcpe", "--steps", "1", "--batch-size", "8",
          "--device", "cpu", "--output", str(tmp_path / "trained")])  # fmt: skip
    main(["extract", "hf:me/vq", "--output", str(tmp_path / "p.safetensors")])
    capsys.readouterr()
    main(["inspect", "hf:me/dcpe"])
    assert "kind             prior" in capsys.readouterr().out


def test_only_the_artifact_and_its_card_are_pushed_and_a_card_in_the_repository_is_left_alone(
    checkpoint, hub, tmp_path
):
    folder = shutil.copytree(checkpoint, tmp_path / "gpt")
    (folder / "notes.txt").write_text("private")
    (folder / "README.md").write_text("My words; sample with hf:OWNER/NAME.")
    push_folder(folder, "me/gpt")
    assert hub.files("me/gpt").keys() == {"README.md", "manifest.json", *read_manifest(checkpoint).files}
    assert hub.files("me/gpt")["README.md"] == b"My words; sample with hf:me/gpt."
    hub.files("me/gpt")["README.md"] = b"Edited on the hub."
    push_folder(folder, "me/gpt", revision="v2")
    assert hub.files("me/gpt", "v2")["README.md"] == b"Edited on the hub."
    assert load_checkpoint("hf:me/gpt@v2").digest == read_manifest(checkpoint).digest


def test_a_file_that_was_changed_on_its_way_is_refused_whatever_its_size(tiny, hub, monkeypatch):
    push_folder(tiny / "tokenizer", "me/vq")
    weights = hub.files("me/vq")["model.safetensors"]
    hub.files("me/vq")["model.safetensors"] = weights[:-1] + bytes([weights[-1] ^ 1])
    monkeypatch.setattr("codeprior.artifact._DIGEST_LIMIT_BYTES", 0)  # as if it were gigabytes
    with pytest.raises(InputError, match=r"model\.safetensors was changed after it was written"):
        load_tokenizer("hf:me/vq")
    del hub.files("me/vq")["model.safetensors"]
    with pytest.raises(InputError, match=r"model\.safetensors of hf:me/vq is not in the repository"):
        load_tokenizer("hf:me/vq")


def test_a_manifest_cannot_reach_out_of_its_repository(tiny, hub):
    push_folder(tiny / "tokenizer", "me/vq")
    record = json.loads(hub.files("me/vq")["manifest.json"])
    record["files"]["../../secret"] = {"bytes": 0, "digest": ""}
    hub.files("me/vq")["manifest.json"] = json.dumps(record).encode()
    with pytest.raises(InputError, match=r"names a file outside of itself: \.\./\.\./secret"):
        load_tokenizer("hf:me/vq")


def test_what_the_hub_or_the_user_refuses_is_said_in_one_line(tiny, hub, tmp_path):
    with pytest.raises(InputError, match="a repository is named owner/name, got tokenizer"):
        push_folder(tiny / "tokenizer", "tokenizer")
    with pytest.raises(InputError, match="there is no such folder"):
        push_folder(tmp_path / "nowhere", "me/vq")
    with pytest.raises(InputError, match=r"hf:me/none holds no tokenizer of codeprior: manifest\.json is not in the"):
        load_tokenizer("hf:me/none")
    with pytest.raises(InputError, match="hf:alone must name a repository"):
        load_tokenizer("hf:alone")
    hub.read_only = True
    with pytest.raises(InputError, match=r"cannot push to me/vq: .*403"):
        push_folder(tiny / "tokenizer", "me/vq")


def test_a_prior_whose_numbers_were_changed_is_refused(tiny, tmp_path):
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(tiny / "prior.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    arrays = load_file(tiny / "prior.safetensors")
    arrays["token_to_cluster"] = np.roll(arrays["token_to_cluster"], 1)
    save_file(arrays, tmp_path / "prior.safetensors", metadata)
    with pytest.raises(InputError, match="was changed after it was written"):
        CodebookPrior.load(tmp_path / "prior.safetensors")
    save_file(arrays, tmp_path / "older.safetensors", {k: v for k, v in metadata.items() if k != "digest"})
    assert CodebookPrior.load(tmp_path / "older.safetensors").n_clusters == 16
