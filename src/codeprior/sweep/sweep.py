"""The verb `sweep`: sample and score at every point of a grid of settings (the papers' scores over guidance scales and
epochs, and over seeds).

Each point has a folder of its own, with what it was made from and how it scored. One that is done is not done again, so
a sweep may be continued and widened. Processes of the same sweep take the points that nobody works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codeprior.artifact import Workspace, digest_json, write_json
from codeprior.config import SweepConfig
from codeprior.plots import score_curves
from codeprior.progress import announce
from codeprior.sweep import PICTURE, SCORES, SUMMARY
from codeprior.sweep.checks import check
from codeprior.sweep.points import Point, Row, claimed, plan
from codeprior.sweep.summary import axis_title, curves, over_seeds, score_names


def sweep(config: SweepConfig) -> dict[str, Any]:
    """Sample and score at every point; an interrupted sweep is continued, another one's points are kept.

    Started several times, by `torchrun` or by hand, the processes share the points out; the last one to finish writes
    the summary.

    Returns
    -------
    dict
        output; points: a row each, what varies and its scores; over_seeds, where seeds varied: mean and standard
        deviation of each score; warnings, a line each.

    Raises
    ------
    InputError
        If a setting is unknown or not allowed, or something is missing or does not fit, before anything is done.
    """
    points = plan(config)
    check([point for point in points if point.results() is None])
    while _work_off(points, discard=config.discard):
        pass  # what another process was working on may have been left by it
    n_missing = sum(point.results() is None for point in points)
    if n_missing:
        return {"output": str(config.output), "state": f"other processes work on {n_missing} of {len(points)} points"}
    return {"output": str(config.output), **_summarise(config, points)}


def _work_off(points: Sequence[Point], *, discard: bool) -> int:
    """Do what is missing and nobody else is doing; how many points these were."""
    n_done = 0
    for number, point in enumerate(points, 1):
        if point.results() is not None:
            continue
        with claimed(point.folder) as mine:
            if mine and point.results() is None:
                announce(f"[{number}/{len(points)}] {point.folder.name}")
                point.work(discard=discard)
                n_done += 1
    return n_done


def _summarise(config: SweepConfig, points: Sequence[Point]) -> Row:
    """Write what was found at points that are all done, scores.json and scores.png, as an artifact; return it."""
    found = [point.results() or {} for point in points]
    rows = [{**point.values, **_floats(results)} for point, results in zip(points, found, strict=True)]
    varied = list(points[0].values)
    scores = score_names(rows, varied)
    results: Row = {"varied": varied, "scores": scores}
    results["points"] = [{name: row.get(name) for name in [*varied, *scores]} for row in rows]
    if len(groups := over_seeds(rows, varied, scores)) < len(rows):
        results["over_seeds"] = groups
    if warnings := list(dict.fromkeys(warning for results in found for warning in results.get("warnings", ()))):
        results["warnings"] = warnings
    settings = {name: value for name, value in config.settings().items() if name != "over"}
    inputs = {point.folder.name: digest_json([point.made_from, row]) for point, row in zip(points, rows, strict=True)}
    folder = config.output / SUMMARY
    with (
        claimed(config.output, wait=True),
        Workspace(folder, kind="sweep", settings=settings, inputs=inputs, overwrite=True) as workspace,
    ):
        if not workspace.complete:
            write_json(workspace.path(SCORES), {**results, "points": rows})
            axis, panels = curves(rows, varied, scores)
            score_curves(panels, workspace.path(PICTURE), xlabel=axis_title(axis, rows))
            workspace.finish([SCORES, PICTURE], results)
    return {name: results[name] for name in ("points", "over_seeds", "warnings") if name in results}


def _floats(results: Row) -> Row:
    return {name: value for name, value in results.items() if isinstance(value, float)}
