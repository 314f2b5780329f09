"""What a sweep makes sure of before the first point, for hours may lie between that one and the one that fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from codeprior.config import EvaluateConfig, SampleConfig
from codeprior.device import resolve_device
from codeprior.evaluation.checks import check_sizes, check_spaces
from codeprior.evaluation.networks import load_network, space_of
from codeprior.evaluation.sources import Source, open_source
from codeprior.generation.sample import Maker
from codeprior.sweep.points import Point


def check(points: Sequence[Point]) -> None:
    """Open everything that the points need, each thing once.

    Raises
    ------
    InputError
        If something is missing or damaged, or does not fit the rest.
    """
    for config in dict.fromkeys(_without_numbers(point.sample) for point in points):
        size = Maker.of(config, resolve_device(config.device)).image_size
        for judged in dict.fromkeys(replace(point.evaluate, samples=Path(), output=Path()) for point in points):
            _check_judge(judged, size)


def _without_numbers(config: SampleConfig) -> SampleConfig:
    """The same but for what no file has to fit."""
    guided = 1.0 if config.cfg_scale == 1 else 2.0
    config = replace(config, output=Path(), seed=0, pick_seed=None, cfg_scale=guided)
    return replace(config, temperature=1.0, top_k=0, top_p=1.0, refine_temperature=1.0)


def _check_judge(config: EvaluateConfig, image_size: int) -> None:
    places = [place for place in (config.reference, config.baseline) if place]
    sources = [open_source(place, image_size, seed=config.seed) for place in places]
    check_sizes(Source("the samples", "", note={"image_size": image_size}), sources)
    device, weights = resolve_device(config.device), config.inception_weights
    network = load_network(config.features, device, inception_weights=weights, download=config.download)
    check_spaces(sources, space_of(network))
