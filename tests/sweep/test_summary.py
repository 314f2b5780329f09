import numpy as np
import pytest

from codeprior.sweep.summary import curves, over_seeds, score_names


def rows(**varied):
    """A row for each combination; its score is 100 a + seed, say."""
    import itertools

    made = []
    for values in itertools.product(*varied.values()):
        row = dict(zip(varied, values, strict=True))
        score = sum(100.0 * value for name, value in row.items() if name == "cfg-scale") + row.get("seed", 0)
        made.append({**row, "FD": score, "FD_sd": 9.0, "real_FD": 1.0})
    return made


def test_scores_are_neither_settings_nor_spreads_nor_of_real_images():
    assert score_names(rows(seed=(0, 1)), ["seed"]) == ["FD"]


def test_means_and_deviations_are_over_seeds_alone():
    given = rows(**{"cfg-scale": (1, 2), "seed": (0, 1, 5)})
    first, second = over_seeds(given, ["cfg-scale", "seed"], ["FD"])
    assert first == {"cfg-scale": 1, "n_seeds": 3, "FD": 102.0, "FD_sd": pytest.approx(np.std([0, 1, 5], ddof=1))}
    assert second["FD"] == 202.0


def test_one_seed_has_no_deviation_and_a_score_that_is_not_there_no_mean():
    made = over_seeds([{"seed": 0, "FD": 1.0, "IS": None}], ["seed"], ["FD", "IS"])
    assert made == [{"n_seeds": 1, "FD": 1.0, "FD_sd": None, "IS": None, "IS_sd": None}]


def test_guidance_goes_along_the_axis_and_checkpoints_are_the_lines():
    given = rows(**{"checkpoint": ("runs/a", "runs/b"), "cfg-scale": (3.0, 1.0), "seed": (0, 2)})
    for row in given:
        row |= {"method": "dcpe", "steps": 10}
    axis, panels = curves(given, ["checkpoint", "method", "steps", "cfg-scale", "seed"], ["FD"])
    assert axis == "cfg-scale"
    assert list(panels["FD"]) == ["a", "b"]
    places, means, deviations = panels["FD"]["a"]
    assert places == [1.0, 3.0]
    assert means.tolist() == [101.0, 301.0]
    assert deviations == pytest.approx(np.full(2, 2**0.5))


def test_checkpoints_of_several_lengths_lie_along_their_steps_by_method():
    given = [
        {"checkpoint": f"{method}-{steps}", "method": method, "steps": steps, "FD": float(steps)}
        for method in ("token", "dcpe")
        for steps in (20, 10)
    ]
    axis, panels = curves(given, ["checkpoint", "method", "steps"], ["FD"])
    assert axis == "steps"
    assert {name: line[0] for name, line in panels["FD"].items()} == {
        "method token": [10, 20],
        "method dcpe": [10, 20],
    }


def test_without_a_number_that_varies_the_checkpoints_lie_along_the_axis_and_at_last_the_seeds():
    given = [{"checkpoint": path, "method": None, "steps": None, "FD": 1.0} for path in ("x/a", "y/a")]
    axis, panels = curves(given, ["checkpoint", "method", "steps"], ["FD"])
    assert axis == "checkpoint"
    assert panels["FD"][""][0] == ["x/a", "y/a"]
    axis, panels = curves(rows(seed=(3, 1)), ["seed"], ["FD"])
    assert (axis, panels["FD"][""][0]) == ("seed", [1, 3])
