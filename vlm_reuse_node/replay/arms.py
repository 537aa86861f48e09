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

"""The arms of a replay: ways to answer the same questions about the same pictures. No model is loaded here.

Every arm has the same model, prompt, seed, chunk grid and question, asked at the same moment; docs/replay.md says what
each sees and what it is compared with. `runners/` has the code that answers, one runner for each arm.
"""

from dataclasses import dataclass

REFERENCE, POLICY = 'cold', 'auto'
PEERS = 'mlx-vlm', 'mlx-vlm-apc'


@dataclass(frozen=True)
class Arm:
    """An entry of the table.

    sees: the pictures in its prompt, and what is kept, for people.
    keeps_state: its answers depend on what it did before, so that a resumed run must ask it everything again.
    observes: it takes every picture as it comes, so that every look and refresh is recorded.
    """

    name: str
    sees: str
    keeps_state: bool = False
    observes: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm(
            REFERENCE,
            'cold-dense: everything is computed from nothing for every question, on the newest picture (behind the '
            'keyframes of auto, where a history is kept). Every other arm is compared with it',
        ),
        Arm('cold-again', 'the same once more: the noise floor'),
        Arm(
            POLICY,
            'the engine as it works by default: it looks at every picture, refreshes the kept state when a question '
            'needs that, and between questions as far as its credit pays for it; with patches where a calibration of '
            'the model allows them (refresh_policy auto)',
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'cold-cached',
            'cold-dense on the very pictures that auto has cached; its exact answers must be the same',
        ),
        Arm(
            'exact',
            'as auto, with refresh_policy exact: a changed picture is computed whole',
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'on-demand',
            'as exact without upkeep (upkeep_share 0): it computes only for questions',
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'patch',
            'as auto, with refresh_policy patch: of a changed picture only the changed cells are '
            'computed, which is approximate; an answer that is not sure enough is given again after a refresh',
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'eager',
            'every changed picture is computed whole at once, asked or not',
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'eager-patch',
            'the changed cells of every changed picture are computed at once, asked or not',
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'reuse',
            'level reuse alone: one state answers everything until it is max_cell_age_s old, whatever changes',
            keeps_state=True,
            observes=True,
        ),
        Arm(
            'low-rate',
            'low-frame-rate dense: from nothing on four pictures spread over the window, the newest the last',
        ),
        Arm('last-4', 'from nothing on the last four pictures'),
        Arm('newest', 'from nothing on the newest picture alone'),
        Arm(
            'mlx-vlm',
            "mlx-vlm's generate with its PromptCacheState, given the newest picture and the same prompt; it answers in "
            'text, also where there are choices',
            keeps_state=True,
        ),
        Arm(
            'mlx-vlm-apc',
            "the same with mlx-vlm's automatic prefix cache (APC) instead",
            keeps_state=True,
        ),
    )
}
