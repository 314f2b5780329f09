"""The verb `push`: an artifact to the Hugging Face hub."""

from __future__ import annotations

from typing import Any

from codeprior.config import PushConfig
from codeprior.prior import CodebookPrior
from codeprior.sharing import push_folder


def push(config: PushConfig) -> dict[str, Any]:
    """Push a folder, or a prior's file.

    Raises
    ------
    InputError
        If it is no finished artifact, or the hub refuses.
    """
    options: dict[str, Any] = {
        "private": config.private or None,
        "revision": config.revision,
        "message": config.message,
    }
    if config.source.is_file():
        url = CodebookPrior.load(config.source).push_to_hub(config.repository, **options)
    else:
        url = push_folder(config.source, config.repository, **options)
    return {"output": f"hf:{config.repository}", "commit": url}
