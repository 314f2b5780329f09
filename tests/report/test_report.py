import base64
import io
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from codeprior.artifact import read_manifest
from codeprior.config import ReportConfig
from codeprior.errors import InputError
from codeprior.report import report
from codeprior.report.format import number, score

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A page's tags, text and pictures; fails where tags do not close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.images: list[dict[str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(self.source)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "img":
            self.images.append({name: value or "" for name, value in attrs})
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style" and data.strip():
            self.words.append(data.strip())

    @property
    def headings(self) -> list[str]:
        return [word for word in self.words if f"<h2>{word}</h2>" in self.source]

    @property
    def text(self) -> str:
        return " ".join(self.words).replace("\u2011", "-")


def decode(uri: str) -> tuple[str, bytes]:
    kind, _, content = uri.removeprefix("data:").partition(";base64,")
    return kind, base64.b64decode(content, validate=True)


@pytest.fixture(scope="module")
def page(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Page:
    output = tmp_path_factory.mktemp("page") / "report.html"
    result = report(ReportConfig(folder=run, output=output, title="Of <digits> & tokens"))
    assert result == {"output": str(output), "n_artifacts": 17, "n_priors": 2, "n_left_out": 0}
    return Page(output)


def test_a_whole_run_has_every_section(page: Page) -> None:
    assert page.headings == [
        "What came out",
        "Generated images",
        "Replacement within clusters",
        "Priors",
        "Models",
        "Tokenizer, codes and judge",
        "How it was made",
    ]
    assert "Of <digits> & tokens" in page.text
    for words in ("60 images of 10 classes, 16 × 16 pixels", "FD[digits-cnn]", "k-means clusters", "real images"):
        assert words in page.text


def test_scores_stand_beside_their_numbers_of_images_and_what_speaks_against_comparing(run: Path, page: Page) -> None:
    scores = read_manifest(run / "evaluations" / "dcpe").results
    assert score(scores["FD[digits-cnn]"], scores["FD[digits-cnn]_sd"]) in page.text
    assert "Reference: 20 images of heldout. Real images: 16 images of digits against the same reference." in page.text
    assert (
        "Mind (plain tokens, k-means clusters, DCPE clusters): 16 images have no covariance of full rank" in page.text
    )
    assert "Seeds of training 0 and of sampling 0." in page.text
    likelihoods = read_manifest(run / "likelihoods" / "dcpe").results
    assert number(likelihoods["nats_per_token"], 3, likelihoods["nats_per_token_se"]) in page.text
    assert number(likelihoods["nats_per_cluster"], 3) in page.text


def test_the_page_needs_no_other_file_no_network_and_no_script(page: Page) -> None:
    assert not {"script", "iframe", "object", "embed"} & set(page.tags)
    for name, value in page.attributes:
        if name in ("src", "href", "srcset"):
            assert value.startswith("data:")
    without_pictures = page.source
    for image in page.images:
        without_pictures = without_pictures.replace(image["src"], "")
    assert "://" not in without_pictures
    assert "@import" not in page.source
    assert "url(" not in without_pictures


def test_every_picture_is_whole_and_described(page: Page) -> None:
    kinds = []
    for image in page.images:
        kind, content = decode(image["src"])
        kinds.append(kind)
        assert image["alt"]
        if kind == "image/svg+xml":
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            with Image.open(io.BytesIO(content)) as picture:
                picture.load()
                assert min(picture.size) >= 64
    # grids of three models, four rows of examples, cluster sizes, losses held out and in training
    assert sorted(kinds) == ["image/png"] * 7 + ["image/svg+xml"] * 3


def test_the_report_repeats(run: Path, page: Page, tmp_path: Path) -> None:
    report(ReportConfig(folder=run, output=tmp_path / "again.html", title="Of <digits> & tokens"))
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page.source


def test_a_folder_with_one_prior_has_a_page_without_holes(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "prior.safetensors", tmp_path)
    result = report(ReportConfig(folder=tmp_path))
    page = Page(tmp_path / "report.html")
    assert result["n_artifacts"] == 0
    assert page.headings == ["Priors", "How it was made"]
    assert len(page.images) == 1


@pytest.mark.parametrize(
    "kind", ["tokenizer", "codes", "classifier", "replacement", "models", "samples", "evaluations", "likelihoods"]
)
def test_each_kind_of_artifact_alone_has_a_page(run: Path, tmp_path: Path, kind: str) -> None:
    shutil.copytree(run / kind, tmp_path / kind)
    report(ReportConfig(folder=tmp_path))
    page = Page(tmp_path / "report.html")
    assert "How it was made" in page.headings
    assert "None" not in page.text.split("Settings, seeds and digests")[0]
    assert len(page.headings) > 1
    assert " nan" not in page.text


def test_an_artifact_by_itself_is_a_folder_of_one(run: Path, tmp_path: Path) -> None:
    report(ReportConfig(folder=run / "classifier", output=tmp_path / "report.html"))
    assert "digits-cnn" in Page(tmp_path / "report.html").text


def test_what_is_damaged_or_unfinished_is_named_and_left_out(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "classifier", tmp_path / "classifier")
    shutil.copytree(run / "evaluations" / "dcpe", tmp_path / "evaluation")
    shutil.copytree(run / "codes", tmp_path / "codes")
    with open(tmp_path / "classifier" / "model.safetensors", "ab") as file:
        file.write(b"!")
    (tmp_path / "codes" / "manifest.json").rename(tmp_path / "codes" / "unfinished.json")
    assert report(ReportConfig(folder=tmp_path))["n_left_out"] == 2
    text = Page(tmp_path / "report.html").text
    assert "model.safetensors has" in text
    assert "codes is unfinished" in text


def test_a_log_that_was_cut_short_is_drawn_as_far_as_it_goes(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "models", tmp_path / "models")
    log = tmp_path / "models" / "dcpe" / "metrics.jsonl"
    log.write_text(log.read_text()[:-10])
    report(ReportConfig(folder=tmp_path))
    assert "Models" in Page(tmp_path / "report.html").headings


def test_a_folder_without_artifacts_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "photo.png").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError) as refusal:
            report(ReportConfig(folder=folder))
        assert str(folder) in str(refusal.value)
        assert "\n" not in str(refusal.value)
    assert not (tmp_path / "report.html").exists()
