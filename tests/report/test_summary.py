from pathlib import Path
from typing import Any

import pytest

from codeprior.artifact import Manifest
from codeprior.report.gather import Findings
from codeprior.report.names import Names
from codeprior.report.summary import findings_in_words


def manifest(kind: str, name: str, results: dict[str, Any], **inputs: str) -> Manifest:
    files = {"model": {"bytes": 1, "digest": name}}
    return Manifest(Path("run") / kind / name, kind, {}, inputs, files, results, 1.0)


def words(*manifests: Manifest) -> dict[str, str]:
    findings = Findings(Path("run"), list(manifests), [])
    return {finding.topic: finding.text.replace("\u00a0", " ") for finding in findings_in_words(Names(findings))}


def replacement(**psnr_db: tuple[float, float | None]) -> Manifest:
    rows = [{"prior": "none", "method": None, "n_clusters": 256, "psnr_db": 26.0}]
    rows += [
        {"prior": method, "method": method, "n_clusters": 128, "psnr_db": value, "psnr_db_sd": sd}
        for method, (value, sd) in psnr_db.items()
    ]
    return manifest("replacement", "test", {"rows": rows})


def generation(n_real: int = 1000, **scores: list[tuple[float, float]]) -> list[Manifest]:
    """A model, samples and an evaluation for each (class consistency, FD) of each method."""
    made = []
    for method, values in scores.items():
        for seed, (consistency, distance) in enumerate(values):
            objective = "token" if method == "token" else "cluster"
            results = {"objective": objective, "method": None if method == "token" else method}
            model = manifest("checkpoint", f"{method}-{seed}", results)
            samples = manifest("samples", f"{method}-{seed}", {}, checkpoint=model.digest)
            judged = {
                "class_consistency": consistency,
                "FD[digits-cnn]": distance,
                "FD[digits-cnn]_sd": 0.1,
                "real_FD[digits-cnn]": 1.5,
                "n_samples": 1000,
                "n_reference": 297,
                "n_real": n_real,
                "n_real_reference": 297,
            }
            made += [model, samples, manifest("evaluation", f"{method}-{seed}", judged, samples=samples.digest)]
    return made


def test_the_better_prior_leads_whichever_it_is() -> None:
    text = words(replacement(dcpe=(24.5, 0.02), kmeans=(24.2, 0.03)))["Replacement"]
    assert "from 26.00 dB to 24.50 dB with DCPE and to 24.20 dB with k-means" in text
    assert "DCPE leads by 0.30 dB, more than the choice of the random tokens explains." in text
    text = words(replacement(dcpe=(24.1, 0.02), kmeans=(24.2, 0.03)))["Replacement"]
    assert "k-means leads by 0.10 dB" in text


def test_a_difference_within_its_spread_is_called_none() -> None:
    text = words(replacement(dcpe=(24.22, 0.02), kmeans=(24.20, 0.03)))["Replacement"]
    assert "DCPE and k-means differ by 0.02 dB, no more than the choice of the random tokens explains." in text
    assert "leads" not in text


def test_a_difference_of_unknown_spread_is_said_to_be_one() -> None:
    text = words(replacement(dcpe=(24.5, None), kmeans=(24.2, None)))["Replacement"]
    assert "DCPE leads by 0.30 dB; the spread is not known." in text


def test_a_single_prior_leads_nobody() -> None:
    assert words(replacement(dcpe=(24.5, 0.02)))["Replacement"].endswith("24.50 dB with DCPE.")


def test_models_trained_once_are_ranked_with_a_caveat() -> None:
    said = words(*generation(token=[(0.90, 2.4)], kmeans=[(0.95, 3.1)], dcpe=[(0.94, 3.15)]))
    assert "k-means 95.0 %, DCPE 94.0 % and plain tokens 90.0 %" in said["Class consistency"]
    assert "differ by 1.0 points, no more than another draw of the images explains" in said["Class consistency"]
    assert (
        "plain tokens 2.40, k-means 3.10 and DCPE 3.15 (real images in their place: 1.50)" in said["Fréchet distance"]
    )
    assert "Plain tokens leads by 0.70, more than another draw of the images explains." in said["Fréchet distance"]
    assert "trained once" in said["How sure"]


def test_several_trainings_of_a_method_are_averaged() -> None:
    said = words(*generation(kmeans=[(0.94, 3.0), (0.96, 4.0)], dcpe=[(0.97, 2.0), (0.99, 2.2)]))
    assert "DCPE 2.10 ± 0.141 and k-means 3.50 ± 0.707" in said["Fréchet distance"]
    assert "mean over 2 or more trained models" in said["How sure"]


def test_trainings_with_other_settings_are_not_averaged() -> None:
    made = generation(dcpe=[(0.97, 2.0), (0.99, 2.2)])
    made[0].settings["steps"], made[3].settings["steps"] = 700, 1400
    text = words(*made)["Fréchet distance"]
    assert "DCPE clusters (checkpoint/dcpe-0) 2.00 and DCPE clusters (checkpoint/dcpe-1) 2.20" in text


def test_samples_of_one_model_are_told_apart() -> None:
    model, samples, scores = generation(token=[(0.9, 2.0)])
    other = manifest("samples", "warm", {}, checkpoint=model.digest)
    other.settings["temperature"] = 1.2
    names = Names(Findings(Path("run"), [model, samples, other, scores], []))
    assert names.label(model) == "plain tokens"
    assert names.label(scores) == "plain tokens (samples/token-0)"
    assert names.label(other) == "plain tokens (samples/warm)"


def test_every_use_of_a_method_has_a_name_and_a_colour_of_its_own() -> None:
    made = []
    for objective in ("token", "cluster", "iar", "factorised", "refine"):
        results = {"objective": objective, "method": None if objective == "token" else "dcpe"}
        made.append(manifest("checkpoint", objective, results))
    names = Names(Findings(Path("run"), made, []))
    assert [names.label(model) for model in made] == [
        "plain tokens",
        "DCPE clusters",
        "IAR + DCPE",
        "factorised + DCPE",
        "second stage of DCPE",
    ]
    _, cluster, _, _, refiner = made
    picked = manifest("samples", "picked", {}, checkpoint=cluster.digest)
    refined = manifest("samples", "refined", {}, checkpoint=cluster.digest, refine=refiner.digest)
    scores = [manifest("evaluation", m.folder.name, {}, samples=m.digest) for m in (picked, refined)]
    names = Names(Findings(Path("run"), [*made, picked, refined, *scores], []))
    assert [names.label(m) for m in (picked, refined, *scores)] == ["DCPE clusters", "DCPE + refine"] * 2
    shown = [*made, refined]
    assert len({names.color(m) for m in shown}) == len(shown)
    assert names.color(refined) == names.color(scores[1]) != names.color(picked)


def test_real_images_that_were_fewer_than_the_samples_are_not_compared_with() -> None:
    assert "real images" in words(*generation(token=[(0.9, 2.0)]))["Fréchet distance"]
    assert "real images" not in words(*generation(n_real=148, token=[(0.9, 2.0)]))["Fréchet distance"]


def test_likelihood_is_told_with_what_it_favours() -> None:
    models = [
        manifest("checkpoint", "a", {"objective": "token", "method": None, "heldout_nats_per_token": 2.97}),
        manifest("checkpoint", "b", {"objective": "cluster", "method": "dcpe", "heldout_nats_per_token": 3.53}),
    ]
    assert words(*models)["Likelihood"].startswith(
        "Nats per token on held-out images, lower is better: plain tokens 2.970 and DCPE 3.530."
    )
    assert "favours all others" in words(*models)["Likelihood"]
    assert "Likelihood" not in words(models[0])


@pytest.mark.parametrize("used", [255, 256])
def test_the_tokenizer_s_use_of_its_codes_is_told(used: int) -> None:
    results = {"train_psnr_db": 26.45, "codes_used": used, "codebook_size": 256}
    text = words(manifest("tokenizer", "t", results))["Tokenizer"]
    assert (
        text
        == f"Rebuilds its training images at 26.4 dB PSNR and uses {'255' if used == 255 else 'all'} of its 256 codes."
    )


def test_nothing_found_is_nothing_said() -> None:
    assert words() == {}


def test_distances_to_other_references_are_neither_averaged_nor_compared() -> None:
    made = generation(token=[(0.9, 2.0)], dcpe=[(0.95, 3.0)])
    *_, scores = made[:3]
    results = {**scores.results, "FD[digits-cnn]": 9.0, "n_reference": 1500, "reference": "digits"}
    again = manifest("evaluation", "again", results, samples=scores.inputs["samples"], reference="other")
    findings = findings_in_words(Names(Findings(Path("run"), [*made, again], [])))
    said = [(finding.topic, finding.text.replace("\u00a0", " ")) for finding in findings]
    assert [topic for topic, _ in said] == ["Class consistency", "Fréchet distance", "Fréchet distance", "How sure"]
    assert "DCPE 95.0 % and plain tokens 90.0 %" in said[0][1]
    assert "of 1,000 samples to 297 images, lower is better: plain tokens 2.00 and DCPE 3.00" in said[1][1]
    assert said[2][1].startswith("FD[digits-cnn] of 1,000 samples to 1,500 images of digits, lower is better: plain")
    assert "leads" not in said[2][1]
    assert said[3][1].startswith("Models were trained once")
