"""Calls listeners from the model's thread, which continues when a listener fails."""

import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)


def notify(listener: Callable[..., None] | None, *arguments: Any) -> None:
    """Call a listener, if there is one. Whatever it raises is logged, not raised."""
    if listener is None:
        return
    try:
        listener(*arguments)
    except Exception:
        _log.exception('A listener failed; the model continues.')
