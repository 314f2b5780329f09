"""What the documentation says is tried: its commands, its examples, the functions that it names."""

import importlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from codeprior.artifact import digest_file
from codeprior.cli import main, parse
from codeprior.clustering.methods import METHODS
from recorded import inception_images, write_inception

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Fewer steps and images, so that a page's commands take seconds; everything else is as written.
SHORTER = {
    "train-tokenizer": ["--steps", "12", "--batch-size", "16", "--restart-every", "4"],
    "train-classifier": ["--steps", "5", "--batch-size", "16"],
    "reconstruct": ["--n-images", "40", "--n-seeds", "2"],
    "train": ["--steps", "4", "--batch-size", "8", "--validate-every", "2"],
    "sample": ["--n-images", "40"],
}


def commands(page: Path) -> list[list[str]]:
    """The `codeprior` lines of a page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("codeprior ")]


def test_the_commands_of_the_readme_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    vectors = torch.randn(16384, 8, generator=torch.Generator().manual_seed(0))
    names = {"quantize.embedding.weight": vectors, "decoder.conv_blocks.0.res.0.norm1.weight": torch.ones(4)}
    torch.save({"model": names}, "vq_ds16_c2i.pt")
    for argv in commands(ROOT / "README.md"):
        if argv[0] != "demo":
            main([*argv, *SHORTER.get(argv[0], [])])
    assert (tmp_path / "runs" / "report.html").stat().st_size > 10_000
    assert "→ runs/report.html" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["table.py", "table_docs.py"])
def test_the_benchmark_tables_are_those_of_the_newest_result_file(script):
    script = ROOT / "benchmarks" / script
    done = subprocess.run([sys.executable, script, "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_function_named_exists(page):
    for name in set(re.findall(r"`(codeprior(?:\.\w+)+)", page.read_text())):
        parts = name.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[cut:]:
                found = getattr(found, attribute)
            break


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_linked_exists(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda script: script.name)
def test_examples_run(script, capsys):
    runpy.run_path(str(script), run_name="__main__")
    assert capsys.readouterr().out


def test_the_tree_in_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text()
    tree = text.split("src/codeprior/\n", 1)[1].split("```", 1)[0]
    for name in re.findall(r"^ {4}(\w+(?:\.py|/)) ", tree, flags=re.MULTILINE):
        assert (ROOT / "src" / "codeprior" / name).exists(), name


def test_the_commands_of_the_page_on_codes_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for argv in commands(ROOT / "docs" / "codes.md"):
        main([*argv, *SHORTER.get(argv[0], [])])
    assert "these are the codes of these images" in capsys.readouterr().out
    from codeprior.codes import CodeStore

    assert (CodeStore.open("runs/codes").codes == CodeStore.open("runs/again").codes).all()


def test_the_page_on_clustering_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(1024, 8)).astype(np.float32))
    names = {"quantize.embedding.weight": vectors, "decoder.conv_blocks.0.res.0.norm1.weight": torch.ones(4)}
    torch.save({"model": names}, "vq_ds16_c2i.pt")
    np.save("counts.npy", rng.poisson(3, 1024))
    page = ROOT / "docs" / "clustering.md"
    for argv in commands(page):
        main(argv)
    assert "are never used" in capsys.readouterr().err
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    found: dict[str, np.ndarray] = {}
    exec(block, found)
    assert len(set(found["labels"])) == 512
    assert {path.name for path in (tmp_path / "runs" / "plots").iterdir()} == {
        "curve.png",
        "dendrogram.png",
        "sizes.png",
    }
    assert set(METHODS) == set(re.findall(r"^\| `(\w[\w+-]*)` \|", page.read_text(), flags=re.MULTILINE))


def test_the_commands_of_the_page_on_objectives_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argv in commands(ROOT / "docs" / "objectives.md"):
        main([*argv, *SHORTER.get(argv[0], [])])
    assert (tmp_path / "runs" / "samples" / "grid.png").exists()


def test_the_commands_of_the_page_on_sharing_run_in_order(tmp_path, monkeypatch):
    """On small models in the originals' files, and on a hub of our own."""
    from codeprior.model import Transformer, model_config
    from codeprior.tokenizers.vqgan import VQGAN, VQGANConfig
    from hub_server import FakeHub

    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "examples" / "own_tokenizer.py", tmp_path)
    tokenizer = VQGAN(VQGANConfig(32, (1, 1, 1, 1, 1), 1, 1, 16, codebook_size=32))
    torch.save({"model": tokenizer.state_dict()}, "vq_ds16_c2i.pt")
    transformer = Transformer(model_config("tiny", vocab_size=32, n_classes=10, grid=(16, 16)))
    torch.save({"model": transformer.state_dict()}, "c2i_B_256.pt")
    with FakeHub().serve(monkeypatch, tmp_path / "cache"):
        for argv in commands(ROOT / "docs" / "sharing.md"):
            shorter = ["--n-images", "2"] if argv[0] == "sample" else []
            main([*argv, *shorter])
        shutil.copy("runs/patches.safetensors", "prior.safetensors")
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sharing.md").read_text(), re.DOTALL):
            exec(block, {})
    assert (tmp_path / "runs" / "from-the-hub" / "samples.npz").exists()
    back = torch.load("gpt.pth", weights_only=True)
    assert all(torch.equal(back[name], tensor) for name, tensor in transformer.state_dict().items())


def test_the_commands_of_the_page_on_training_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "training.md"
    for argv in commands(page):
        main([*argv, *SHORTER.get(argv[0], [])])
    lines = re.findall(r"^torchrun (--nproc-per-node 2 -m codeprior train .*)$", page.read_text(), flags=re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line), *SHORTER["train"]]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    for name in ("one", "two", "sharded"):
        assert (tmp_path / "runs" / name / "model.safetensors").exists()


def test_the_cluster_scripts_of_the_page_on_training_are_shell_and_their_flags_are_ours():
    page = (ROOT / "docs" / "training.md").read_text()
    (script,) = re.findall(r"^```bash\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    many = [line for line in page.replace("\\\n", " ").splitlines() if "-m codeprior train --config" in line]
    assert len(many) == 2
    for line in many:
        parse("train", shlex.split(line.split(" -m codeprior train ")[1].removesuffix(" &")))


@pytest.mark.slow
def test_the_commands_of_the_page_on_evaluation_run_in_order(tmp_path, monkeypatch, capsys):
    """With weights of Inception that pass for the published ones, and few images in the place of ImageNet's."""
    from codeprior.evaluation import networks
    from codeprior.tokenizers.vqgan import VQGAN, VQGANConfig

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODEPRIOR_WEIGHTS", str(tmp_path))
    weights = tmp_path / networks.INCEPTION.names[0]
    write_inception(weights)
    digest = digest_file(weights).removeprefix("sha256:")
    monkeypatch.setattr(networks, "INCEPTION", replace(networks.INCEPTION, sha256=digest))
    np.savez("samples.npz", arr_0=inception_images(32, 6))
    np.savez("VIRTUAL_imagenet256_labeled.npz", arr_0=inception_images(32, 5))
    np.savez("reconstructions.npz", arr_0=inception_images(256, 3))
    for number, pixels in enumerate(inception_images(256, 3)):
        path = tmp_path / "imagenet" / "val" / f"n0144076{number}" / "ILSVRC2012_val_00000293.JPEG"
        path.parent.mkdir(parents=True)
        Image.fromarray(pixels).save(path)
    torch.save({"model": VQGAN(VQGANConfig(32, (1, 1, 1, 1, 1), 1, 1, 16, codebook_size=32)).state_dict()}, "vq.pt")
    main(["convert", "vq.pt", "--output", "runs/vq-16"])
    for argv in commands(ROOT / "docs" / "evaluation.md"):
        main([*argv, *([] if "50000" in argv else SHORTER.get(argv[0], []))])
    said = capsys.readouterr()
    assert "rFID" in said.out
    assert "gFID" in said.out
    assert "precision_float16" in (tmp_path / "runs" / "as-adm" / "scores.json").read_text()
    assert (tmp_path / "samples.txt").read_text().startswith("Inception Score: ")


@pytest.mark.slow
def test_the_commands_of_the_page_on_sampling_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "sampling.md").read_text()
    for argv in commands(ROOT / "docs" / "sampling.md"):
        main([*argv, *SHORTER.get(argv[0], [])])
    assert "Scores over cfg-scale" in (tmp_path / "runs" / "report.html").read_text()
    (line,) = re.findall(r"^torchrun (--nproc-per-node 2 .*)$", page, flags=re.MULTILINE)
    command = [sys.executable, "-m", "torch.distributed.run", *shlex.split(line), *SHORTER["sample"]]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
    with np.load("runs/samples/samples.npz") as by_one, np.load("runs/by-two/samples.npz") as by_two:
        assert np.array_equal(by_one["arr_0"], by_two["arr_0"])


def test_the_flags_of_the_papers_on_the_page_on_sampling_are_ours():
    page = (ROOT / "docs" / "sampling.md").read_text()
    rows = re.findall(r"^\|.*\| `(--cfg-scale [^`]*)` \|$", page, flags=re.MULTILINE)
    shown = re.findall(r"`(--classes \d[^`]*)`", page)
    assert len(rows) == 7
    assert len(shown) == 1
    for flags in [*rows, *shown]:
        parse("sample", ["--checkpoint", "c", "--tokenizer", "t", "--output", "o", *shlex.split(flags)])
    (script,) = re.findall(r"^```bash\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in page.replace("\\\n", " ").splitlines():
        if (found := re.search(r"codeprior sample (--checkpoint runs/gpt-b .*)", line)) is not None:
            parse("sample", shlex.split(found.group(1)))
