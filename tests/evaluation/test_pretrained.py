from dataclasses import replace
from pathlib import Path

import pytest

from codeprior.artifact import digest_file
from codeprior.errors import InputError
from codeprior.evaluation import pretrained
from codeprior.evaluation.pretrained import INCEPTION, find_weights

NAME = INCEPTION.names[0]


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A file given, and empty folders where the weights are looked for."""
    folders = {"variable": tmp_path / "variable", "hub": tmp_path / "torch" / "hub" / "checkpoints"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    monkeypatch.setenv("CODEPRIOR_WEIGHTS", str(folders["variable"]))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "given.pth").write_bytes(b"given")
    return {"given": tmp_path / "given.pth", **folders}


def test_weights_are_looked_for_as_given_then_in_the_variable_s_folder_then_in_the_hub_s(
    places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=f"at hand: put {NAME} \\(https.*{NAME}\\) into one of {places['variable']}, "):
        find_weights(INCEPTION)
    (places["hub"] / INCEPTION.names[1]).write_bytes(b"hub")
    assert find_weights(INCEPTION).path == places["hub"] / INCEPTION.names[1]
    (places["variable"] / NAME).write_bytes(b"variable")
    assert find_weights(INCEPTION)[:2] == (places["variable"] / NAME, "CODEPRIOR_WEIGHTS")
    assert find_weights(INCEPTION, places["given"]).path == places["given"]
    assert f"Inception of 2015: {places['given']} (as given; not what was published)" in capsys.readouterr().err
    with pytest.raises(InputError, match="there is no such file"):
        find_weights(INCEPTION, places["hub"] / "nowhere.pth")


def test_weights_are_downloaded_only_if_allowed_and_only_with_the_right_hash(
    places: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "remote.pth").write_bytes(b"published")
    digest = digest_file(tmp_path / "remote.pth").removeprefix("sha256:")
    published = replace(INCEPTION, url=(tmp_path / "remote.pth").as_uri(), sha256=digest)
    with pytest.raises(InputError, match="or allow --download"):
        find_weights(published)
    with pytest.raises(InputError, match="cannot download"):
        find_weights(replace(published, sha256="0" * 64), download=True)
    assert not list(places["hub"].iterdir())
    found = find_weights(published, download=True)
    assert found.path == places["hub"] / NAME
    assert found.is_published(published)
    assert find_weights(published).way == "torch hub's cache"
    with pytest.raises(InputError, match="cannot download"):
        find_weights(replace(published, names=("other.pth",), url="file:///nowhere.pth"), download=True)


def test_other_weights_are_not_the_published_ones(places: dict[str, Path]) -> None:
    assert not find_weights(INCEPTION, places["given"]).is_published(INCEPTION)


def test_every_file_has_the_hash_that_its_name_begins() -> None:
    for published in pretrained.ALL:
        tail = published.names[0].removesuffix(".pth").rpartition("-")[2]
        assert published.sha256.startswith(tail) or published.names[0] in ("vgg.pth", "alex.pth")
