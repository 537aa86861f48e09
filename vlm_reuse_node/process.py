"""What the node's process does besides ROS: signals, and the engine's log."""

from contextlib import contextmanager
import logging
import signal
import sys
import time

READY = 'vlm_reuse_node: ready'


def say_ready() -> None:
    """Tell whoever started the process, at any log level, that the node takes pictures and questions."""
    print(READY, file=sys.stderr, flush=True)


class Interrupts:
    """SIGINT and SIGTERM raise KeyboardInterrupt while the node loads or closes.

    While it spins rclpy's own handlers end it: raised inside rclpy's C++ code, KeyboardInterrupt becomes another error.
    So it does inside an extension that is being imported; `came` tells that it was raised.
    """

    def __init__(self):
        """Take over both signals; call it before `rclpy.init`, whose handlers call these."""
        self.welcome, self.came = True, False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    @contextmanager
    def while_welcome(self):
        """Let signals interrupt what is done meanwhile."""
        before, self.welcome = self.welcome, True
        try:
            yield
        finally:
            self.welcome = before

    def _on_signal(self, number, stack) -> None:
        if self.welcome and not self.came:
            self.came = True
            raise KeyboardInterrupt


class RosLog(logging.Handler):
    """Sends what the engine logs through a ROS logger; each place in the code at most once in five seconds."""

    def __init__(self, logger):
        """logger: a node's `get_logger()`."""
        super().__init__()
        self._logger, self._last_s = logger, {}

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record as an error or a warning."""
        place, now_s = (record.pathname, record.lineno), time.monotonic()
        if now_s - self._last_s.get(place, -5.0) >= 5.0:
            self._last_s[place] = now_s
            write = self._logger.error if record.levelno >= logging.ERROR else self._logger.warning
            write(self.format(record))
