"""Listeners of the model's thread: their failures are their own."""

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


def tell(listener: Callable[..., None] | None, *news: Any) -> None:
    """Call a listener, if there is one; the model goes on whatever it raises."""
    if listener is None:
        return
    try:
        listener(*news)
    except Exception:
        _log.exception('A listener failed; the model goes on.')
