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

"""Runs a function with a model, on a thread of its own: MLX's arrays belong to the thread that made them."""

import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from tqdm import tqdm

from vlm_reuse_node.config import Config
from vlm_reuse_node.model import loading
from vlm_reuse_node.model.load_progress import LoadProgress
from vlm_reuse_node.model.vlm import Vlm

T = TypeVar('T')

POLL_S = 0.5


def load(config: Config, progress: LoadProgress | None = None) -> Vlm:
    """Load the model of a configuration, as it wants it. Raises ModelError."""
    return loading.load(config.model, config.visual_tokens, config.thinking, progress)


def run_with_model(config: Config, call: Callable[[Vlm], T], on_interrupt: Callable[[], bool] = lambda: False) -> T:
    """Load a model, call the function with it, and return its result. Raises ModelError, or what the function raises.

    Lines on stderr say how far the loading is. Signals are handled meanwhile. on_interrupt: called at Ctrl-C; returns
    whether to go on waiting, else KeyboardInterrupt is raised. The thread is of no use to MLX afterwards.
    """
    progress = LoadProgress(_say)
    over = threading.Event()
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        vlm: Vlm | None = None
        try:
            vlm = load(config, progress)
            results.append(call(vlm))
        except Exception as error:
            errors.append(error.with_traceback(None))  # its frames hold the model
        finally:
            vlm = None
            loading.release_thread()
            over.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while not over.is_set():
        try:
            over.wait(POLL_S)  # no join: Python 3.11 takes a thread for ended when Ctrl-C comes meanwhile
            progress.tell_when_due()
        except KeyboardInterrupt:
            if not on_interrupt():
                raise
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _say(line: str) -> None:
    """Write a line on stderr, above a progress bar if there is one."""
    tqdm.write(line, file=sys.stderr)
