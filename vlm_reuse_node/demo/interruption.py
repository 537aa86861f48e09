"""A wish to stop, kept in mind until it is a good moment."""

import signal

from vlm_reuse_node.errors import VlmReuseError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(VlmReuseError):
    """Somebody wants the program to stop."""


class Interruption:
    """Ctrl-C, a polite kill and a closed terminal; as a context manager it notes them instead of raising.

    Python loses a KeyboardInterrupt that happens to come while it clears away an object; a note is not lost.
    """

    def __init__(self):
        """Start without a wish to stop."""
        self._is_wanted = False

    def __enter__(self) -> 'Interruption':
        self._before = {kind: signal.signal(kind, self._note) for kind in SIGNALS}
        return self

    def __exit__(self, *error) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def check(self) -> None:
        """Raise Interrupted when somebody wants to stop; call it wherever something is waited for."""
        if self._is_wanted:
            raise Interrupted('interrupted; everything it started has ended.')

    def _note(self, number, frame) -> None:
        self._is_wanted = True
