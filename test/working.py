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

"""Workers on the tiny model for tests, and what is done with them. Every wait is on an event."""

import threading
from dataclasses import replace

from forgetful import forgetful
from patience import PATIENCE_S

from vlm_reuse_node.config import Config
from vlm_reuse_node.serving.worker import ModelWorker
from vlm_reuse_node.session.question import Question

QUESTION = Question('what color is the square ?', max_tokens=6)


class ObservedWorker(ModelWorker):
    """A worker that keeps what it reports; its looks can be held.

    refreshes: (frame, record) of each look and refresh; counted: a semaphore that counts them. dropped, told: frames
    that were dropped, and watches with their previous answers. held: how many questions were held (`hold_a_question`).
    """

    def __init__(self, model_dir, **values):
        self.refreshes, self.counted = [], threading.Semaphore(0)
        self.dropped, self.told, self.held = [], [], 0
        self.look_held, self.looks_go_on = threading.Event(), threading.Event()
        self.looks_go_on.set()
        super().__init__(
            Config(model=str(model_dir), **values),
            self._keep,
            on_watch=lambda watch, before: self.told.append((watch, before)),
            on_dropped=self.dropped.append,
        )

    def hold_looks(self):
        """Hold the end of the next look on the looks' thread. `look_held` is set when it stands."""
        self.look_held.clear()
        self.looks_go_on.clear()

    def _keep(self, frame, refresh):
        self.refreshes.append((frame, refresh))
        self.counted.release()
        if threading.current_thread().name == 'looks' and not self.looks_go_on.is_set():
            self.look_held.set()
            assert self.looks_go_on.wait(PATIENCE_S)


def show(worker, *frames):
    """Hand over frames, each after the one before was looked at."""
    for frame in frames:
        worker.observe(frame)
        while not any(seen is frame for seen, _ in worker.refreshes):
            assert worker.counted.acquire(timeout=PATIENCE_S)


def answer(worker, question=QUESTION, now_ns=0, ask=None, camera=''):
    return (ask or worker.ask)(camera, question, now_ns).result(PATIENCE_S)


def hold_a_question(worker, brake, now_ns=0, **kwargs):
    """Ask what was not asked before, and return when the model stands in the middle of the answer."""
    brake.hold()
    worker.held += 1
    future = worker.ask('', replace(QUESTION, text=QUESTION.text + ' ?' * worker.held), now_ns, **kwargs)
    assert brake.held.wait(PATIENCE_S)
    return future


def levels(worker):
    """The levels of all looks and refreshes so far."""
    return [refresh.level for _, refresh in worker.refreshes]


def forget(worker):
    """Let the worker's sessions compute every answer from now on."""
    for session in worker._loop._sessions.values():
        forgetful(session)
