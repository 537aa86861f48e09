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

"""The thread that looks at pictures, so that the newest picture's stale cells are known while the model is busy."""

import threading

from vlm_reuse_node.serving.inbox import Inbox
from vlm_reuse_node.serving.model_loop import ModelLoop


class Looks:
    """Takes the newest frame of each camera from the inbox, and lets its session look at it."""

    def __init__(self, inbox: Inbox, loop: ModelLoop) -> None:
        """Prepare; `start` begins."""
        self._inbox, self._loop = inbox, loop
        self._thread = threading.Thread(target=self._run, name='looks', daemon=True)

    def start(self) -> None:
        """Start the thread. It ends when the inbox is closed."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has ended."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while (frame := self._inbox.next_frame()) is not None:
            session = self._loop.session(frame.camera)
            if session and session.can_look(frame):
                self._loop.look(session, frame)
                self._inbox.wake()
            elif not self._inbox.put_first_frame(frame):
                self._loop.drop(frame)
