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

"""What follows from the measurements: rates, memory, and parameters for the node."""

from dataclasses import dataclass

from vlm_reuse_node.check.machine import Machine, ModelFacts
from vlm_reuse_node.check.questions import TEXT_TOKENS
from vlm_reuse_node.check.stages import COLD, IMAGE, LOOK, PATCH_QUESTION, QUESTION, SLOT, TOKEN, VISION, Stages
from vlm_reuse_node.config import AUTO_POLICY, EXACT_POLICY, Config
from vlm_reuse_node.model.device_memory import CACHE_SHARE
from vlm_reuse_node.session.history import CONTEXT_SHARE

MOST_HISTORY = 256
LONGEST_TIMEOUT_S = 3600.0
SLOWEST_ANSWERS = 3  # an answer may take so many times the expected time before it times out


@dataclass(frozen=True)
class Memory:
    """Memory in megabytes. picture: the state of one picture. room: beside the weights, for all states.

    peak_mb: the most that MLX's arrays took during the check, weights included.
    pictures_that_fit: into max_cache_mb and the model's context.
    """

    weights_mb: float
    picture_mb: float
    picture_tokens: int
    peak_mb: float
    room_mb: float
    max_cache_mb: int
    pictures_that_fit: int


@dataclass(frozen=True)
class Suggestion:
    """One parameter of the node, and why."""

    name: str
    value: str | float
    why: str


def rates(stages: Stages) -> dict[str, float]:
    """Return what the times come to, per second."""
    computed = stages.ms(IMAGE) + stages.ms(VISION) + stages.ms(SLOT)
    text = stages.ms(QUESTION) + TEXT_TOKENS * stages.ms(TOKEN)
    found = {
        'pictures looked at': stages.ms(LOOK),
        'pictures computed whole': computed,
        'questions with choices, warm': stages.ms(QUESTION),
        f'texts of {TEXT_TOKENS} tokens, warm': text,
        'questions with choices, cold': stages.ms(COLD),
    }
    return {name: 1e3 / ms for name, ms in found.items() if ms}


def memory(machine: Machine, model: ModelFacts, picture_mb: float, picture_tokens: int, peak_mb: float) -> Memory:
    """Return what fits. picture_mb, picture_tokens: of the state of one picture. peak_mb: see `Memory`."""
    room = machine.available_mb
    if machine.device_mb:  # a part of it is for buffers that MLX keeps
        room = max(0.0, (1 - CACHE_SHARE) * machine.device_mb - model.weights_mb)
    max_cache_mb = int(max(1, min(Config().max_cache_mb, room / 2)))
    fitting = int(max_cache_mb / picture_mb) if picture_mb else MOST_HISTORY + 1
    if model.context:
        fitting = min(fitting, int(CONTEXT_SHARE * model.context / picture_tokens))
    return Memory(
        model.weights_mb, picture_mb, picture_tokens, peak_mb, room, max_cache_mb, min(fitting, MOST_HISTORY + 1)
    )


def suggestions(config: Config, stages: Stages, fits: Memory, can_patch: bool, auto: str) -> list[Suggestion]:
    """Return parameters for the node. auto: what refresh_policy auto comes to for this model, and why."""
    default = Config()
    visual_tokens = []
    if config.visual_tokens:
        visual_tokens.append(Suggestion('visual_tokens', config.visual_tokens, 'the size that was checked'))
    found = [
        Suggestion('model', config.model, 'the model that was checked'),
        *visual_tokens,
        Suggestion('refresh_policy', AUTO_POLICY, auto)
        if can_patch
        else Suggestion('refresh_policy', EXACT_POLICY, 'this model gets no patches'),
        Suggestion(
            'max_cache_mb',
            fits.max_cache_mb,
            'the default fits' if fits.max_cache_mb == default.max_cache_mb else 'half of the room beside the weights',
        ),
        Suggestion(
            'history_frames',
            default.history_frames,
            f'up to {max(0, fits.pictures_that_fit - 1)} keyframes fit; each makes every answer a little slower',
        ),
    ]
    if can_patch and (patch := stages.ms(PATCH_QUESTION)):
        found.append(
            Suggestion('budget_ms', default.budget_ms, f'no limit; a patch of one cell takes {patch:.0f} ms at least')
        )
    else:
        found.append(Suggestion('budget_ms', default.budget_ms, 'no limit: a picture is computed whole or not at all'))
    longest_s = (stages.ms(COLD) + default.max_tokens * stages.ms(TOKEN)) / 1e3
    if SLOWEST_ANSWERS * longest_s > default.timeout_s:
        timeout_s = min(LONGEST_TIMEOUT_S, round(SLOWEST_ANSWERS * longest_s, 0))
        found.append(Suggestion('timeout_s', timeout_s, f'an answer may take {longest_s:.0f} s'))
    return found
