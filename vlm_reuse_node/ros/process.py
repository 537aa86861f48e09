"""The node's process: arguments, signals, exit codes and the engine's log.

ROS runs on a thread of its own, so that the main one can always hear a signal, and the open questions are answered
before ROS ends. rclpy's own handlers would end ROS first.
"""

import logging
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

import cv2
import rclpy
from rclpy.executors import SingleThreadedExecutor, TimeoutException
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from vlm_reuse_node.errors import ConfigError, ModelError
from vlm_reuse_node.ros.node import NODE_NAME, SceneNode
from vlm_reuse_node.ros.parameters import making
from vlm_reuse_node.ros.stage import Stage

READY = f'{NODE_NAME}: ready'
EXIT_MODEL, EXIT_CONFIG, EXIT_FAULT = 1, 2, 3
SIGNAL, END = 'a signal', 'the end'  # of ROS's thread
# The middleware brings what was on its way at the end, and takes away the last answers, within this time.
LAST_WORDS_S = 0.2
# Planners that go on asking do not hold up the end for longer.
GOODBYE_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run the node until it is told to stop.

    Returns 0, EXIT_MODEL for a model that cannot be loaded, EXIT_CONFIG for parameters or arguments that are wrong,
    EXIT_FAULT for a fault of this program.
    """
    news = SimpleQueue()  # the only queue that a signal handler may write to
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: news.put(SIGNAL))
    if hasattr(cv2, 'setLogLevel'):
        cv2.setLogLevel(0)  # damaged pictures are counted and named by the node
    try:
        _init(argv)
        running = _Running(news)
    except ConfigError as err:
        return _say(err, EXIT_CONFIG)
    running.start()
    news.get()
    if not running.end():
        # The model is loading or working still: its thread cannot be stopped, and Python aborts when it ends under it.
        sys.stderr.flush()
        os._exit(0)
    rclpy.try_shutdown()
    return running.exit_code


def say_ready() -> None:
    """Tell whoever started the process, at any log level, that the node takes pictures and questions."""
    print(READY, file=sys.stderr, flush=True)


class _Running(Thread):
    """The node and its executor. Tells `news` when it ends by itself."""

    def __init__(self, news: SimpleQueue):
        """Make the node. Raises ConfigError when ROS refuses to, as for missing SROS 2 keys."""
        super().__init__(name='ros', daemon=True)
        with making(
            f'The node {NODE_NAME} (look at the log above; with SROS 2, at ROS_SECURITY_KEYSTORE, the enclave '
            'and the policy)'
        ):
            self._node = SceneNode(on_active=say_ready)
        self._executor, self._told, self._news, self.exit_code = SingleThreadedExecutor(), Future(), news, 0
        self._executor.add_node(self._node)
        self._log = EngineLog(self._node.get_logger())

    def run(self) -> None:
        """Spin until `end`, answer who still waits, and give everything back."""
        try:
            self.exit_code = self._spin()
            self._node.close()
        except Exception:
            traceback.print_exc()
            self.exit_code = EXIT_FAULT
        finally:
            # The first model's loading imported MLX on this thread.
            if loading := sys.modules.get('vlm_reuse_node.model.loading'):
                loading.release_thread()
            self._news.put(END)

    def end(self) -> bool:
        """Have it end, after the model step that runs now. False when it cannot, or need not: told twice."""
        self._told.set_result(None)  # which wakes the executor
        while self.is_alive() and self._node.stage is not Stage.CONFIGURING:
            try:
                if self._news.get(timeout=0.05) == SIGNAL:
                    break
            except Empty:
                pass
        return not self.is_alive()

    def _spin(self) -> int:
        """Returns the exit code."""
        try:
            if self._node.config.autostart:
                self._node.start()
            self._executor.spin_until_future_complete(self._told)
        except ConfigError as err:
            return _say(err, EXIT_CONFIG)
        except ModelError as err:
            return _say(err, EXIT_MODEL)
        finally:
            self._say_goodbye()
        return 0

    def _say_goodbye(self) -> None:
        """Answer the open questions, CANCELLED, and INACTIVE to those that are on their way."""
        self._node.dismiss()
        end_s = time.monotonic() + GOODBYE_S
        self._spin_for(LAST_WORDS_S)
        while self._work_off() and time.monotonic() < end_s:  # on a busy machine many may still wait
            pass
        self._spin_for(LAST_WORDS_S)  # an answer that was not fetched is gone with this process

    def _spin_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.02)

    def _work_off(self) -> bool:
        """Run what is ready now; returns whether anything was."""
        worked = False
        with suppress(TimeoutException):  # which ends a round of the executor
            while True:
                handler, _, _ = self._executor.wait_for_ready_callbacks(timeout_sec=0)
                worked = True
                handler()
                handler.result()  # raises what it raised
        return worked


class EngineLog(logging.Handler):
    """Sends what the engine logs through a ROS logger, at its level; each sentence at most once in five seconds."""

    def __init__(self, logger):
        """Begin. logger: a node's `get_logger()`."""
        super().__init__()
        self._logger, self._last_s = logger, {}
        engine = logging.getLogger('vlm_reuse_node')
        engine.setLevel(int(logger.get_effective_level()))  # ROS's levels have Python's numbers
        engine.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        said, now_s = self.format(record), time.monotonic()
        if now_s - self._last_s.get(said, -5.0) < 5.0:
            return
        self._last_s = {old: last_s for old, last_s in self._last_s.items() if now_s - last_s < 5.0} | {said: now_s}
        if record.levelno >= logging.ERROR:
            self._logger.error(said)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(said)
        elif record.levelno >= logging.INFO:
            self._logger.info(said)
        else:
            self._logger.debug(said)


def _init(argv: list[str] | None) -> None:
    """Raises ConfigError for ROS arguments that are wrong, such as a parameter file that is not there."""
    try:
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as err:
        reason = str(err).splitlines()[0].partition(', at ')[0].rstrip('.')
        raise ConfigError(f'The ROS arguments are wrong: {reason}.') from err


def _say(err: Exception, exit_code: int) -> int:
    print(f'{NODE_NAME}: {err}', file=sys.stderr)
    return exit_code


if __name__ == '__main__':
    sys.exit(main())
