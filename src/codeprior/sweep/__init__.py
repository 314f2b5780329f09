"""The verb `sweep`: sample and score at every point of a grid of settings (the papers' scores over guidance scales and
epochs, and over seeds).

Each point has a folder of its own, with what it was made from and how it scored. One that is done is not done again, so
a sweep may be continued and widened. Processes of the same sweep take the points that nobody works on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codeprior.config import SweepConfig
from codeprior.progress import announce
from codeprior.sweep.points import Point, claimed, plan
from codeprior.sweep.summary import summarise


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
        If a setting is unknown or not allowed, before anything is done.
    """
    points = plan(config)
    while _work_off(points, discard=config.discard):
        pass  # what another process was working on may have been left by it
    n_missing = sum(point.results() is None for point in points)
    if n_missing:
        return {"output": str(config.output), "state": f"other processes work on {n_missing} of {len(points)} points"}
    return {"output": str(config.output), **summarise(config, points)}


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
