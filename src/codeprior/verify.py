"""Whether a store of codes is what it claims: a sample of its images encoded again, and how the codes are used."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from codeprior.codes import CodeStore, unigram_entropy_nats
from codeprior.config import VerifyCodesConfig
from codeprior.device import resolve_device
from codeprior.encoding import encode_views
from codeprior.errors import InputError
from codeprior.images import BadImageError, ImageSet, open_images
from codeprior.progress import track
from codeprior.tokenizers import load_tokenizer

EQUAL, CLOSE = 0.999, 0.9
"""Shares of equal codes: above the first, differences are ties that rounding decides; between them, of precision."""


def verify_codes(config: VerifyCodesConfig) -> dict[str, Any]:
    """Encode a seeded sample of a store's images again, all views, and say how far the codes agree.

    Sums in another order (another batch size, device or library) move features by some 1e-6, which changes the code
    where two are all but equally near: a few in 10,000. TF32 or bfloat16 change some per cent, another JPEG decoder or
    resampling filter more. Another tokenizer, other crops or another order of images leave little more than chance,
    which is the sum of the squared frequencies of the codes.

    Returns
    -------
    dict
        `passed`, whether to train on them: each view agrees, and each sampled class; else the exit code is 1.
        `agreement` over all sampled codes, `views` a row for each view, `chance`, usage and entropy of the codes of
        the whole store, `verdict` and `warnings`.

    Raises
    ------
    InputError
        If store, tokenizer or images cannot be opened, or cannot belong together.
    """
    device = resolve_device(config.device)
    store = CodeStore.open(config.codes)
    tokenizer = load_tokenizer(config.tokenizer, device)
    if store.codebook_size != len(tokenizer.codebook):
        raise InputError(
            f"{config.codes} has codes of {store.codebook_size}, {config.tokenizer} has {len(tokenizer.codebook)}; "
            "give the tokenizer that made them"
        )
    images = open_images(config.data, bad_images="later" if config.bad_images == "skip" else "refuse")
    numbers = store.image_numbers()
    if numbers[-1] >= len(images):
        raise InputError(f"{config.codes} is of {numbers[-1] + 1} images or more, {config.data} holds {len(images)}")
    rows = np.sort(np.random.default_rng(config.seed).permutation(len(store))[: config.n_images])
    equal = []
    for row in track(rows, "verify"):
        views = _read(images, int(numbers[row]), store, skip=config.bad_images == "skip")
        if views is not None:
            again = encode_views(tokenizer, views[None], config.batch_size, device)[0]
            equal.append((again == store.codes[row]).mean(axis=1))
    if not equal:
        raise InputError("none of the sampled images can be read; give another --seed or more --n-images")
    agreement = np.mean(equal, axis=0)
    usage = store.usage()
    differing = np.flatnonzero(images.labels[numbers[rows]] != store.labels[rows])
    return {
        "passed": bool(agreement.min() >= CLOSE and not len(differing)),
        "verdict": _verdict(agreement),
        "agreement": float(agreement.mean()),
        "lowest of an image": float(np.mean(equal, axis=1).min()),
        "n_images": len(equal),
        **_use_of_codes(usage),
        "views": [{"view": number, "agreement": float(share)} for number, share in enumerate(agreement)],
        "warnings": list(_warnings(store, tokenizer.digest, agreement, usage, differing, len(rows), len(images))),
    }


def _read(images: ImageSet, number: int, store: CodeStore, *, skip: bool) -> np.ndarray | None:
    try:
        return images.read_views(number, store.image_size, store.views)
    except BadImageError:
        if not skip:
            raise
        return None


def _use_of_codes(usage: np.ndarray) -> dict[str, Any]:
    """Numbers of the whole store, from counts (V,)."""
    entropy_nats = unigram_entropy_nats(usage)
    return {
        "chance": float(((usage / usage.sum()) ** 2).sum()),
        "codes_used": int((usage > 0).sum()),
        "dead_codes": int((usage == 0).sum()),
        "codebook_size": len(usage),
        "unigram_entropy_nats": entropy_nats,
        "unigram_perplexity": math.exp(entropy_nats),
    }


def _verdict(agreement: np.ndarray) -> str:
    """What the agreement of each view means."""
    if agreement.min() < CLOSE:
        return "NOT the codes of these images: do not train"
    return "these are the codes of these images" if agreement.mean() >= EQUAL else "close, but computed otherwise"


def _warnings(
    store: CodeStore,
    tokenizer_digest: str,
    agreement: np.ndarray,
    usage: np.ndarray,
    differing: np.ndarray,
    n_sampled: int,
    n_in_set: int,
) -> list[str]:
    found = []
    mean = float(agreement.mean())
    if mean < CLOSE:
        found.append(
            f"only {mean:.1%} of the codes agree: look at the tokenizer, at --views (now {store.views}), at the image "
            f"size (now {store.image_size}) and at the order of the images"
        )
    elif mean < EQUAL:
        found.append(
            f"{mean:.2%} of the codes agree, which rounding does not explain: TF32 or bfloat16, another JPEG decoder?"
        )
    if mean >= CLOSE > float(agreement.min()) or (mean < CLOSE and float(agreement.max()) >= CLOSE):
        bad = [str(number) for number, share in enumerate(agreement) if share < CLOSE]
        found.append(f"views {', '.join(bad)} do not agree while others do: are they in another order?")
    if len(differing):
        found.append(f"{len(differing)} of {n_sampled} sampled images have another class than the store says")
    if store.tokenizer_digest != tokenizer_digest:
        found.append("the store is signed for another tokenizer than this one")
    n_rows = len(store) + len(store.missing)
    if n_rows != n_in_set:
        found.append(f"the store is of {n_rows} images, the set has {n_in_set}")
    if (usage > 0).sum() < len(usage) / 2:
        found.append(f"{(usage == 0).sum()} of {len(usage)} codes are never used")
    return found
