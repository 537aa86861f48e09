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

"""How long tests wait: until something has happened. Time alone never decides whether one passes."""

import time

# After this long the wait counts as hanging. A machine so busy that this is too short has no use for test results.
PATIENCE_S = 150.0


def wait_for(condition, what='the condition', meanwhile=lambda: time.sleep(0.05)):
    """Look until it is true, and return its value; `meanwhile` is done between two looks."""
    end_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end_s, f'{what} did not happen within {PATIENCE_S:g} s'
        meanwhile()
    return value
