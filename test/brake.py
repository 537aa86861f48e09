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

"""What stands in the way of the tiny model, for tests of what happens in the middle of an answer."""

import threading

from patience import PATIENCE_S

from vlm_reuse_node.model.families.qwen2_5_vl import Family


class Brake:
    """Stands in the way of the model's forward passes: counts them, holds one, or makes one fail, when told to."""

    def __init__(self, monkeypatch):
        self.held, self.go_on, self.failing, self.passes = threading.Event(), threading.Event(), False, 0
        self.go_on.set()

        def braked(run):
            def run_braked(family, *args, **kwargs):
                self.passes += 1
                if not self.go_on.is_set():
                    self.held.set()
                    assert self.go_on.wait(PATIENCE_S)
                if self.failing:
                    raise RuntimeError('the device is gone')
                return run(family, *args, **kwargs)

            return run_braked

        for name in ('forward', 'step'):
            monkeypatch.setattr(Family, name, braked(getattr(Family, name)))

    def hold(self):
        """Hold the next pass. `held` is set when it stands."""
        self.held.clear()
        self.go_on.clear()
