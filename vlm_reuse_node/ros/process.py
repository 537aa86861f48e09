# Copyright 2026 vlm_reuse_node maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The node's process: arguments, signals, exit codes and the engine's log.

ROS runs on its own thread, so the main thread can always receive a signal. Open questions are answered before ROS shuts
down. rclpy's own signal handlers would shut it down first.
"""

import argparse
import logging
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import cv2
import rclpy
from rclpy.executors import SingleThreadedExecutor, TimeoutException
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, ModelError
from vlm_reuse_node.plain_text import log_lines, print_error
from vlm_reuse_node.ros.middleware import make_room
from vlm_reuse_node.ros.node import NODE_NAME, SceneNode
from vlm_reuse_node.ros.parameters import making
from vlm_reuse_node.ros.stage import Stage

READY = f'{NODE_NAME}: ready'
EXIT_MODEL, EXIT_CONFIG, EXIT_FAULT = 1, 2, 3
HELP = f"""The node, without `ros2 run` or `ros2 launch`. Everything is a parameter (docs/parameters.md), for example:
  node --ros-args -p model:=tabletop -p cameras:="[front]" -r front/image_raw:=/your/topic
Without parameters it loads the model '{Config.model}' and looks at {', '.join(Config.cameras)}/image_raw."""
EXIT_CODES = f"""Exit codes: 0 a signal stopped it; {EXIT_MODEL} the model cannot be loaded;
{EXIT_CONFIG} wrong parameters or arguments; {EXIT_FAULT} an internal error, with a traceback."""
SIGNAL, END = 'a signal', 'the end'  # events: a signal arrived, or the ROS thread ended
# A signal may reach any thread, but Python runs its handler only when the main thread is awake. It wakes up this often,
# seconds.
WAKE_S = 0.05
# Time for the middleware to deliver the last requests, and again to send the last answers, seconds.
FLUSH_S = 0.2
# Shutting down takes no longer than this while planners keep asking, seconds.
MOST_SHUTDOWN_S = 5.0


def main(argv: list[str] | None = None) -> int:
    """Run the node until a signal stops it.

    Returns 0; EXIT_MODEL when the model cannot be loaded; EXIT_CONFIG for wrong parameters or arguments; EXIT_FAULT
    after an internal error.
    """
    _parse(argv)
    events: SimpleQueue[str] = SimpleQueue()  # the only queue that a signal handler may write to
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: events.put(SIGNAL))
    if hasattr(cv2, 'setLogLevel'):
        cv2.setLogLevel(0)  # the node itself counts and reports damaged pictures
    make_room()
    try:
        _init(argv)
        running = _Running(events)
    except ConfigError as error:
        return _say(error, EXIT_CONFIG)
    running.start()
    while _next(events) is None:
        pass
    if not running.end():
        # The model's thread is still busy and cannot be stopped. A normal exit of Python would abort.
        sys.stderr.flush()
        os._exit(0)
    rclpy.try_shutdown()
    return running.exit_code


def say_ready() -> None:
    """Print that the node takes pictures and questions. Does not depend on the log level."""
    print(READY, file=sys.stderr, flush=True)


class _Running(Thread):
    """The node and its executor. Puts END into `events` when it ends."""

    def __init__(self, events: SimpleQueue) -> None:
        """Create the node. Raises ConfigError when ROS refuses it, for example without SROS 2 keys."""
        super().__init__(name='ros', daemon=True)
        with making(
            f'The node {NODE_NAME} (see the log above; with SROS 2, check ROS_SECURITY_KEYSTORE, the enclave '
            'and the policy)'
        ):
            self._node = SceneNode(on_active=say_ready)
        self._events, self.exit_code = events, 0
        self._executor = SingleThreadedExecutor()
        self._end_future: Future = Future()
        self._executor.add_node(self._node)
        self._log = EngineLog(self._node.get_logger())

    def run(self) -> None:
        """Spin until `end`, answer the open questions, and free everything."""
        try:
            try:
                self.exit_code = self._spin()
            finally:
                self._node.close()
        except Exception:
            traceback.print_exc()
            self.exit_code = EXIT_FAULT
        finally:
            # Loading the first model imported MLX on this thread.
            if loading := sys.modules.get('vlm_reuse_node.model.loading'):
                loading.release_thread()
            self._events.put(END)

    def end(self) -> bool:
        """End the thread after the current step of the model. False while a model loads, or after a second signal."""
        self._end_future.set_result(None)  # wakes the executor
        while self.is_alive() and self._node.stage is not Stage.CONFIGURING:
            if _next(self._events) == SIGNAL:
                break
        return not self.is_alive()

    def _spin(self) -> int:
        """Run the executor until `end`. Returns the exit code."""
        try:
            if self._node.config.autostart:
                self._node.start()
            else:
                self._node.say_what_it_waits_for()
            self._executor.spin_until_future_complete(self._end_future)
        except ConfigError as error:
            return _say(error, EXIT_CONFIG)
        except ModelError as error:
            return _say(error, EXIT_MODEL)
        finally:
            self._answer_open_questions()
        return 0

    def _answer_open_questions(self) -> None:
        """Answer open questions with CANCELLED, and late ones with INACTIVE."""
        self._node.dismiss()
        end_s = time.monotonic() + MOST_SHUTDOWN_S
        self._spin_for(FLUSH_S)
        while self._run_ready() and time.monotonic() < end_s:  # on a busy machine there may be many
            pass
        self._spin_for(FLUSH_S)  # an answer that was not sent by then is lost

    def _spin_for(self, seconds: float) -> None:
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.02)

    def _run_ready(self) -> bool:
        """Run the callbacks that are ready now. Returns whether there were any."""
        worked = False
        with suppress(TimeoutException):  # raised when nothing more is ready
            while True:
                handler, _, _ = self._executor.wait_for_ready_callbacks(timeout_sec=0)
                worked = True
                handler()
                handler.result()  # raises what the callback raised
        return worked


class EngineLog(logging.Handler):
    """Forwards the engine's log to a ROS logger, at its level.

    Repeats the same message at most every five seconds, except at debug.
    """

    def __init__(self, logger: Any) -> None:
        """Start forwarding. logger: a node's `get_logger()`."""
        super().__init__()
        self._logger = logger
        self._last_s: dict[str, float] = {}  # when each sentence was written last
        engine = logging.getLogger('vlm_reuse_node')
        engine.setLevel(int(logger.get_effective_level()))  # ROS's levels have Python's numbers
        engine.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Forward one record."""
        for line in log_lines(record):
            self._write(record.levelno, line)

    def _write(self, level: int, text: str) -> None:
        if level < logging.INFO:
            self._logger.debug(text)
            return
        now_s = time.monotonic()
        if now_s - self._last_s.get(text, -5.0) < 5.0:
            return
        self._last_s = {old: last_s for old, last_s in self._last_s.items() if now_s - last_s < 5.0} | {text: now_s}
        if level >= logging.ERROR:
            self._logger.error(text)
        elif level >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


def _next(events: SimpleQueue[str]) -> str | None:
    """The next event; None when there is none yet."""
    with suppress(Empty):
        return events.get(timeout=WAKE_S)


def _parse(argv: list[str] | None) -> None:
    """Answer --help. All other arguments are those of ROS."""
    parser = argparse.ArgumentParser(
        NODE_NAME,
        'node [-h] [--ros-args -p NAME:=VALUE -r OLD:=NEW --params-file FILE --log-level LEVEL]',
        HELP,
        EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.parse_known_args(argv)


def _init(argv: list[str] | None) -> None:
    """Initialise ROS. Raises ConfigError for wrong ROS arguments, such as a missing parameter file."""
    try:
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].partition(', at ')[0].rstrip('.')
        raise ConfigError(f'The ROS arguments are wrong: {reason}.') from error


def _say(error: Exception, exit_code: int) -> int:
    print_error(NODE_NAME, error)
    return exit_code


if __name__ == '__main__':
    sys.exit(main())
