"""A small file in exactly each family's layout, and what must be made of it."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from codeprior.cli import main
from codeprior.codebook import Codebook, read_counts
from codeprior.config import ExtractConfig
from codeprior.errors import InputError
from codeprior.extract import extract
from codeprior.families import FAMILIES, NOTES
from codeprior.prior import CodebookPrior
from hub_server import FakeHub
from test_docs import commands

GOLDEN = Path(__file__).parent / "golden"
N = 24  # codes; the widths are the real ones


def book(width, n=N, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def ones(*names, size=3):
    return {name: torch.ones(size) for name in names}


def llamagen(prefix="", width=8, **extra):
    names = ones(
        f"{prefix}encoder.conv_in.weight",
        f"{prefix}encoder.conv_blocks.0.res.0.norm1.weight",
        f"{prefix}decoder.conv_blocks.0.attn.0.q.weight",
        f"{prefix}decoder.mid.0.norm1.weight",
        f"{prefix}quant_conv.weight",
        f"{prefix}quantize.codebook_used",
    )
    return {**names, f"{prefix}quantize.embedding.weight": book(width), **extra}


def taming(width=256, prefix="", **extra):
    names = ones(
        f"{prefix}encoder.conv_in.weight",
        f"{prefix}encoder.down.0.block.0.norm1.weight",
        f"{prefix}encoder.mid.block_1.norm1.weight",
        f"{prefix}decoder.up.0.block.0.norm1.weight",
        f"{prefix}quant_conv.weight",
    )
    return {**names, f"{prefix}quantize.embedding.weight": book(width), **extra}


def gigatok(**extra):
    names = ones("s2to1encoder.positional_embedding", "s1to2decoder.ln_pre.weight", "decoder.adaptive.0.gamma.weight")
    return llamagen(**names, **extra)


def titok(width):
    names = ones("latent_tokens", "encoder.transformer.0.ln_1.weight", "decoder.transformer.0.ln_1.weight")
    pixel = {"pixel_quantize.embedding.weight": book(256, 10, seed=1)}
    return {
        **names,
        **pixel,
        **ones("pixel_decoder.up.1.upsample_conv.weight"),
        "quantize.embedding.weight": book(width),
    }


def maskgit():
    names = ("encoder.down.0.block.0.norm1.weight", "encoder.mid.0.norm1.weight", "decoder.up.1.upsample_conv.weight")
    return {**ones(*names), "quantize.embedding.weight": book(256)}


def var():
    phi = ones(*(f"quantize.quant_resi.qresi_ls.{i}.weight" for i in range(4)))
    return taming(32, **phi, **{"quantize.ema_vocab_hit_SV": torch.arange(10.0 * N).reshape(10, N)})


def xqgan():
    return {
        **ones("encoder.model.blocks.0.norm1.weight", "quantize.quant_resi.qresi_ls.0.weight"),
        "quantize.embedding.weight": book(32),
        "quantize.ema_vocab_hit_SV": torch.ones(10, N),
    }


def emu3(prefix=""):
    names = ones(f"{prefix}encoder.time_conv.0.conv.conv.weight", f"{prefix}decoder.time_res_stack.0.norm1.weight")
    return {**taming(4, prefix), **names}


def janus(prefix, *others):
    return {**llamagen(prefix), **ones(*others)}


def diffusers(width):
    names = ("encoder.down_blocks.0.resnets.0.norm1.weight", "decoder.up_blocks.0.resnets.0.norm1.weight")
    return {**ones(*names), "quantize.embedding.weight": book(width)}


def vector_quantize(n_heads=1):
    return {
        "encoder.0.weight": torch.ones(3, 3),
        "vq._codebook.initted": torch.ones(1),
        "vq._codebook.cluster_size": torch.arange(float(n_heads * N)).reshape(n_heads, N),
        "vq._codebook.embed_avg": torch.ones(n_heads, N, 16),
        "vq._codebook.embed": torch.stack([book(16, seed=head) for head in range(n_heads)]),
    }


def projected(state, key, layer, bias=True):
    """Rows behind a linear layer, as the tokenizer computes them."""
    with torch.no_grad():
        linear = torch.nn.Linear(state[key].shape[1], state[key].shape[1], bias=bias)
        rows = linear(state[key])
    return {**state, **{f"{layer}.{name}": value for name, value in linear.state_dict().items()}}, rows


BOOK = "quantize.embedding.weight"
SIMVQ, SIMVQ_ROWS = projected(taming(32), BOOK, "quantize.embedding_proj")
FROZEN = "sim_vq.frozen_codebook"
LIBRARY, LIBRARY_ROWS = projected({FROZEN: book(16)}, FROZEN, "sim_vq.code_transform", False)
GIGATOK, GIGATOK_ROWS = projected(gigatok(), BOOK, "quantize.codebook_transform", False)
AVERAGED_BOOK = "model_ema.quantizeembeddingweight"
AVERAGED = {"model_ema.decay": torch.tensor(0.9), AVERAGED_BOOK: book(256, seed=7)}

# family, how its file is wrapped and called, the file, the key found, its rows, the space
LAYOUTS = [
    ("llamagen", "vq_ds16_c2i.pt", {"model": llamagen()}, BOOK, book(8), "normalised"),
    ("gigatok", "VQ_SB256.pt", {"model": gigatok(), "optimizer": {"state": {}}}, BOOK, book(8), "normalised"),
    ("gigatok-simvq", "simvq.pt", {"state_dict": GIGATOK}, BOOK, GIGATOK_ROWS, "projected, then normalised"),
    (
        "aim",
        "aim.safetensors",
        {**llamagen("vqvae."), **ones("mamba.lm_head.weight")},
        f"vqvae.{BOOK}",
        book(8),
        "normalised",
    ),
    (
        "janus",
        "janus.safetensors",
        janus("gen_vision_model.", "language_model.model.norm.weight"),
        f"gen_vision_model.{BOOK}",
        book(8),
        "normalised",
    ),
    (
        "janus",
        "janus-hf.safetensors",
        {**taming(8, "model.vqmodel."), **ones("model.vision_model.x")},
        f"model.vqmodel.{BOOK}",
        book(8),
        "normalised",
    ),
    ("var", "vae_ch160v4096z32.pth", var(), BOOK, book(32), "raw"),
    ("xqgan", "xqgan.pt", {"ema": xqgan(), "model": ones("other")}, BOOK, book(32), "normalised"),
    ("titok", "titok_l32.bin", titok(12), BOOK, book(12), "normalised"),
    ("titok-vq8k", "titok_bl64.safetensors", titok(64), BOOK, book(64), "raw"),
    ("simvq", "simvq.ckpt", {"state_dict": SIMVQ}, BOOK, SIMVQ_ROWS, "projected"),
    ("simvq-library", "own.pt", LIBRARY, FROZEN, LIBRARY_ROWS, "projected"),
    ("vector-quantize", "vq.pt", vector_quantize(), "vq._codebook.embed", book(16), "raw"),
    ("emu3", "model.safetensors", emu3(), BOOK, book(4), "raw"),
    (
        "emu3",
        "emu3-hf.safetensors",
        {**emu3("model.vqmodel."), **ones("model.text_model.norm.weight")},
        f"model.vqmodel.{BOOK}",
        book(4),
        "raw",
    ),
    (
        "chameleon",
        "chameleon-hf.safetensors",
        {**taming(256, "model.vqmodel."), **ones("model.norm.weight")},
        f"model.vqmodel.{BOOK}",
        book(256),
        "raw",
    ),
    ("diffusers", "diffusion_pytorch_model.safetensors", diffusers(64), BOOK, book(64), "raw"),
    ("diffusers", "movq.safetensors", diffusers(4), BOOK, book(4), "raw"),
    ("maskgit", "maskgit-vqgan-imagenet-f16-256.bin", maskgit(), BOOK, book(256), "raw"),
    ("ibq", "imagenet256_16384.ckpt", {"state_dict": taming(**AVERAGED)}, AVERAGED_BOOK, book(256, seed=7), "raw"),
    (
        "taming-gumbel",
        "last.ckpt",
        {"state_dict": {**ones("quantize.proj.weight"), "quantize.embed.weight": book(256)}},
        "quantize.embed.weight",
        book(256),
        "raw",
    ),
    (
        "taming-ema",
        "last.ckpt",
        {
            "state_dict": taming(
                **{"quantize.embedding.cluster_size": torch.ones(N), "quantize.embedding.embed_avg": book(256)}
            )
        },
        BOOK,
        book(256),
        "raw",
    ),
    ("taming", "last.ckpt", {"state_dict": taming(**ones("loss.discriminator.main.0.weight"))}, BOOK, book(256), "raw"),
]


def write(path, tree):
    (save_file if path.suffix == ".safetensors" else torch.save)(tree, path)
    return path


@pytest.mark.parametrize(
    ("family", "name", "tree", "key", "rows", "space"), LAYOUTS, ids=[f"{row[0]}-{row[1]}" for row in LAYOUTS]
)
def test_each_family_is_found_recognised_and_clustered_in_its_space(tmp_path, family, name, tree, key, rows, space):
    path = write(tmp_path / name, tree)
    output = tmp_path / "prior.safetensors"
    result = extract(ExtractConfig(codebook=path, output=output, n_clusters=5))
    assert (result["family"], result["key"].split(" / ")[-1], result["space"]) == (family, key, space)
    np.testing.assert_allclose(Codebook.load(path).vectors, rows.numpy(), rtol=2e-6, atol=1e-6)
    assert result["normalized"] == space.endswith("normalised")
    assert CodebookPrior.load(output).n_clusters == 5


@pytest.mark.parametrize(
    ("recorded", "name", "family"),
    [
        ("llamagen", "VQ-16", "llamagen"),
        ("llamagen", "VQ-8", "llamagen"),
        ("gigatok", "VQ_SS256", "gigatok"),
        ("gigatok", "VQ_BL256", "gigatok"),
    ],
)
def test_the_originals_names_are_recognised(tmp_path, recorded, name, family):
    shapes = json.loads((GOLDEN / f"{recorded}_state_dicts.json").read_text())[name]["state_dict"]
    state = {key: torch.zeros(shape if key == BOOK else 1) for key, shape in shapes.items()}
    origin = Codebook.load(write(tmp_path / "original.pt", {"model": state})).origin
    assert (origin.family, origin.key, origin.wrapper) == (family, BOOK, "model")


def test_every_row_of_the_table_is_tested_above():
    alike = {"iar", "iar2", "iar2-detail"}  # tested below: an alias, and two books in one file
    assert {row.name for row in FAMILIES} - alike == {layout[0] for layout in LAYOUTS}


@pytest.mark.parametrize(
    ("family", "tree"),
    [("iar", {"model": llamagen()}), ("chameleon", {"state_dict": taming()}), ("ibq", {"state_dict": taming()})],
)
def test_a_family_in_anothers_layout_may_be_named(tmp_path, family, tree):
    codebook = Codebook.load(write(tmp_path / "a.pt", tree), family=family)
    assert codebook.origin.family == family


def test_iar2_holds_two_books_each_by_its_name(tmp_path):
    second = book(8, 40, seed=3)
    path = write(tmp_path / "iar2.pt", {"model": llamagen(**{"quantize.embedding_second": second})})
    with pytest.raises(InputError, match=r"several codebooks: .*weight \(24 x 8\), .*second \(40 x 8\); .*--key"):
        Codebook.load(path)
    first = Codebook.load(path, key="quantize.embedding.weight")
    detail = Codebook.load(path, key="embedding_second")
    assert (first.origin.family, first.space_name) == ("iar2", "normalised")
    assert (detail.origin.family, detail.space_name) == ("iar2-detail", "raw")
    np.testing.assert_array_equal(detail.vectors, second.numpy())
    assert Codebook.load(path, family="iar2-detail").digest == detail.digest


@pytest.mark.parametrize(
    ("tree", "family", "said"),
    [
        ({"model": llamagen()}, "taming", "is not taming; by its names this is llamagen"),
        ({"model": llamagen()}, "taming-gumbel", r"holds no quantize.embed.weight; by its names this is llamagen"),
        ({"state_dict": SIMVQ}, "taming", "is not taming; by its names this is simvq"),
        (titok(64), "titok", "is not titok; by its names this is titok-vq8k"),
        (llamagen(), "lamagen", "no family 'lamagen'; known: .*llamagen"),
        (
            ones("encoder.conv_in.weight", "decoder.conv_in.weight"),
            "lfq",
            "stores no codebook: code i is the vector of its",
        ),
    ],
)
def test_a_wrong_family_is_said_in_one_line(tmp_path, tree, family, said):
    with pytest.raises(InputError, match=said) as error:
        Codebook.load(write(tmp_path / "a.pt", tree), family=family)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"state_dict": ones("encoder.conv_in.weight", "decoder.adaptive.0.gamma.weight")}, "a lookup-free tokenizer"),
        ({"model": {"tok_embeddings.weight": book(8, 70)}}, "is a transformer; its tokenizer's file has the codebook"),
        (
            {f"{name}.weight": book(4) for name in ("mine", "yours")},
            r"it holds mine.weight \(24 x 4\), yours.*: give --key",
        ),
        ({"mine": book(4), "yours": book(4)}, r"it holds mine \(24 x 4\), yours.*: give --key"),
        (
            {"a.quantize.embedding.weight": book(8), "b.quantize.embedding.weight": book(8)},
            "several codebooks: a.quant",
        ),
        (
            {"vq._codebook.embed": torch.ones(2, N, 4), "vq._codebook.cluster_size": torch.ones(2, N)},
            "2 heads, .* --key '",
        ),
        ({**gigatok(), "quantize.codebook_transform.0.weight": torch.ones(3)}, "is more than a linear layer"),
    ],
)
def test_where_there_is_no_one_codebook_it_is_said_in_one_line(tmp_path, tree, said):
    with pytest.raises(InputError, match=said):
        Codebook.load(write(tmp_path / "a.pt", tree))


def test_a_missing_key_lists_what_there_is(tmp_path):
    path = write(tmp_path / "a.pt", llamagen())
    with pytest.raises(InputError, match=r"no tensor nowhere.weight; it holds .*quantize.embedding.weight \(24 x 8\)"):
        Codebook.load(path, key="nowhere.weight")


def test_what_cannot_be_known_is_asked_and_each_answer_explained(tmp_path):
    path = write(tmp_path / "book.pt", {"quantize.embedding.weight": book(8)})
    codebook = Codebook.load(path)
    assert codebook.space_name == "unknown"
    with pytest.raises(InputError, match=r"does not tell .* Give --family: .*llamagen.*\(rows are l2-norm") as e:
        extract(ExtractConfig(codebook=path, output=tmp_path / "prior.safetensors"))
    assert "taming" in str(e.value).partition("l2-norm")[2]
    assert "have rows of 8 numbers" in str(e.value)
    assert Codebook.load(path, family="llamagen").space_name == "normalised"
    assert Codebook.load(path, family="taming").space_name == "raw"
    assert Codebook.load(path, normalize=False).space_name == "raw"


def test_llamagens_names_with_another_width_are_asked_for_too(tmp_path):
    path = write(tmp_path / "a.pt", {"model": llamagen(width=32)})
    with pytest.raises(InputError, match="does not tell"):
        _ = Codebook.load(path).space
    assert Codebook.load(path, family="llamagen").space_name == "normalised"


def test_a_configuration_in_the_file_or_beside_it_has_the_word_before_the_family(tmp_path):
    args = argparse.Namespace(codebook_l2_norm=False, vq_model="VQ-16")
    codebook = Codebook.load(write(tmp_path / "trained.pt", {"model": llamagen(), "args": args}))
    assert codebook.space_name == "raw"
    assert codebook.origin.note == "its configuration says that rows are not normalised, unlike others of its family"
    (tmp_path / "config.json").write_text(json.dumps({"model": {"vq_model": {"use_l2_norm": False}}}))
    assert Codebook.load(write(tmp_path / "titok.safetensors", titok(12))).space_name == "raw"


def test_family_and_key_together_are_taken_at_their_word(tmp_path):
    path = write(tmp_path / "a.pt", {"codes": book(8), "other": book(8)})
    codebook = Codebook.load(path, family="llamagen", key="codes")
    assert (codebook.origin.family, codebook.space_name) == ("llamagen", "normalised")
    with pytest.raises(InputError, match="does not tell how its codes"):
        _ = Codebook.load(path, key="codes").space


def test_a_prior_is_no_codebook(tmp_path):
    CodebookPrior(token_to_cluster=np.arange(4), codebook_digest="sha256:00", method="ward").save(
        tmp_path / "p.safetensors"
    )
    with pytest.raises(InputError, match="holds no codebook"):
        Codebook.load(tmp_path / "p.safetensors")


def test_the_preferred_wrapper_is_the_moving_average(tmp_path):
    average = llamagen()
    average["quantize.embedding.weight"] = book(8, seed=9)
    path = write(tmp_path / "a.pt", {"model": llamagen(), "ema": average})
    codebook = Codebook.load(path)
    assert codebook.origin.wrapper == "ema"
    np.testing.assert_array_equal(codebook.vectors, book(8, seed=9).numpy())


def test_heads_are_chosen_by_number_and_so_are_their_counts(tmp_path):
    path = write(tmp_path / "heads.pt", vector_quantize(n_heads=3))
    codebook = Codebook.load(path, key="vq._codebook.embed[2]")
    np.testing.assert_array_equal(codebook.vectors, book(16, seed=2).numpy())
    np.testing.assert_array_equal(read_counts(path, codebook.origin.key), np.arange(2 * N, 3 * N))
    with pytest.raises(InputError, match=r"3 heads, \[0\] to \[2\]; got \[3\]"):
        Codebook.load(path, key="vq._codebook.embed[3]")


def test_counts_that_a_checkpoint_keeps_are_the_usage(tmp_path):
    cluster_size = torch.arange(N).clamp(min=4) - 4.0
    tree = taming(**{"quantize.embedding.cluster_size": cluster_size, "quantize.embedding.embed_avg": book(256)})
    path = write(tmp_path / "ema.ckpt", {"state_dict": tree})
    result = extract(ExtractConfig(codebook=path, usage=path, output=tmp_path / "p.safetensors", n_clusters=5))
    assert result["dead_codes"] == 5
    hits = np.arange(10 * N).reshape(10, N)
    np.testing.assert_array_equal(read_counts(write(tmp_path / "var.pth", var())), hits.sum(axis=0))
    with pytest.raises(InputError, match="keeps no counts"):
        read_counts(write(tmp_path / "none.pt", llamagen()))


def test_codes_that_were_never_used_are_warned_of(tmp_path):
    tree = taming()
    tree["quantize.embedding.weight"][:7] = book(256, 7) * 1e-3
    path = write(tmp_path / "last.ckpt", {"state_dict": tree})
    result = extract(ExtractConfig(codebook=path, output=tmp_path / "p.safetensors", n_clusters=5))
    assert "7 of 24 codes lie where training starts them" in result["warnings"][0]


def test_the_guide_agrees_with_the_table():
    guide = (Path(__file__).parent.parent / "docs" / "families.md").read_text().splitlines()
    sections = {name for line in guide if line.startswith("## ") for name in line[3:].split(", ")}
    rows = {name: line for line in guide if line.startswith("| ") for name in line[2:].partition(" |")[0].split(", ")}
    for row in FAMILIES:
        assert row.name in sections
        assert row.name in NOTES
        assert row.wrapper in rows[row.name]
        words = ["projected"] * bool(row.projection) + ["normalised"] * (row.space == "normalised")
        assert rows[row.name].endswith(f"| {', then '.join(words) or 'raw'} |")


HOSTILE = "calls builtins.eval when it is loaded; nothing was run"


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return eval, (f"open({str(self.path)!r}, 'w')",)


def others(family):
    """A family whose codes are compared otherwise, so that no file of `family` can be one of it."""
    row = next(row for row in FAMILIES if row.name == family)
    return next(
        name
        for name in ("taming-gumbel", "titok", "llamagen")
        if not any(r.name == name and r.resembles(row) for r in FAMILIES)
    )


@pytest.mark.parametrize(
    ("family", "name", "tree", "key", "rows", "space"), LAYOUTS, ids=[f"{row[0]}-{row[1]}" for row in LAYOUTS]
)
def test_each_familys_file_damaged_misnamed_or_hostile_gives_one_clear_line(
    tmp_path, family, name, tree, key, rows, space
):
    whole = write(tmp_path / name, tree)
    found = Codebook.load(whole).origin
    said = {
        "a wrong family": (whole, {"family": "lfq"}, "stores no codebook"),
        "another family": (whole, {"family": others(family)}, f"is not {others(family)}"),
        "an unknown family": (whole, {"family": "lamagen"}, "no family 'lamagen'"),
        "an unknown key": (whole, {"key": "nowhere.weight"}, r"has no tensor nowhere\.weight; it holds"),
    }
    (tmp_path / "cut").mkdir()
    cut = tmp_path / "cut" / name
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    said["cut in the middle"] = (cut, {}, "cut off|complete|damaged")
    (tmp_path / "lacking").mkdir()
    inner = tree.get(found.wrapper, tree)
    lacking = {k: v for k, v in inner.items() if k not in (found.key.partition("[")[0], BOOK)}
    lacking = {k: v for k, v in lacking.items() if "pixel_quantize" not in k and "embed_avg" not in k}
    tree_lacking = {found.wrapper: lacking} if found.wrapper else lacking
    said["without its codebook"] = (write(tmp_path / "lacking" / name, tree_lacking), {}, "holds no codebook")
    if whole.suffix != ".safetensors":
        (tmp_path / "hostile").mkdir()
        hostile = write(tmp_path / "hostile" / name, {**tree, "x": Hostile(tmp_path / "ran")})
        said["a pickle that runs code"] = (hostile, {}, HOSTILE)
    for what, (path, flags, message) in said.items():
        with pytest.raises(InputError, match=message) as error:
            _ = Codebook.load(path, **flags).space
        assert str(error.value).isprintable(), what
    assert not (tmp_path / "ran").exists()


def test_the_commands_of_the_guide_run(tmp_path, monkeypatch):
    """Each on a small file in the layout of what it names, here or on a hub of our own."""
    hub = FakeHub()
    files = {"iar2.pt": {"model": llamagen(**{"quantize.embedding_second": book(8, 40)})}, "vqgan.ckpt": LAYOUTS[-1][2]}
    files |= {name: tree for _, name, tree, *_ in LAYOUTS} | {"mine.pt": vector_quantize()}
    files["VQ_SB256_e200.pt"] = files["VQ_SB256.pt"]
    on_hub = {
        "hp-l33/aim-xlarge": ("model.safetensors", files["aim.safetensors"]),
        "deepseek-ai/Janus-Pro-1B": ("model.safetensors", files["janus.safetensors"]),
        "yucornetto/tokenizer_titok_l32_imagenet": ("model.safetensors", titok(12)),
        "BAAI/Emu3-VisionTokenizer": ("model.safetensors", emu3()),
        "amused/amused-256": ("vqvae/diffusion_pytorch_model.safetensors", diffusers(64)),
    }
    for repository, (name, tree) in on_hub.items():
        hub.branches[repository, "main"] = {name: save(tree)}
    monkeypatch.chdir(tmp_path)
    np.save("counts.npy", np.arange(N))
    given = commands(Path(__file__).parent.parent / "docs" / "families.md")
    assert len(given) > len({name for row in FAMILIES for name in [row.name]}) / 2
    with hub.serve(monkeypatch, tmp_path / "cache"):
        for argv in given:
            named = argv[1]
            if not named.startswith("hf:"):
                write(Path(named), files[named])
            main(argv)
            output = Path(argv[argv.index("--output") + 1])
            assert CodebookPrior.load(output).n_clusters > 0
            output.unlink()
