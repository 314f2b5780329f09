"""Samples and scores over a grid of settings. A sweep's folder: `points/<point>/` with `samples`, `scores` and, once it
is done, `point.json`; and `summary/` with `scores.json` and `scores.png`."""

POINTS, POINT = "points", "point.json"
SUMMARY, SCORES, PICTURE = "summary", "scores.json", "scores.png"
