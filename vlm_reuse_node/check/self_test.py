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

"""The story of a check: load the model, hold it to its claims, time its stages, and say what follows."""

import threading
import time
from collections.abc import Callable

from vlm_reuse_node.check import advice
from vlm_reuse_node.check.claim import Claim, Mark
from vlm_reuse_node.check.levels import STEADY, LevelCheck, guarded, why_no_schema
from vlm_reuse_node.check.machine import model_facts, peak_mb, this_machine
from vlm_reuse_node.check.patches import PatchCheck
from vlm_reuse_node.check.peer import compare_with_mlx_vlm
from vlm_reuse_node.check.pictures import Pictures
from vlm_reuse_node.check.questions import SCHEMA, make_questions
from vlm_reuse_node.check.report import PictureFacts, Report
from vlm_reuse_node.check.sizes import Size, sizes
from vlm_reuse_node.check.stages import Stages
from vlm_reuse_node.config import Config
from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.replay.model_thread import run_with_model
from vlm_reuse_node.session.answerer import Answerer
from vlm_reuse_node.session.trust import decide

# How the questions are shared out: of `share` many at least LEAST each.
REUSE, FRAME, HISTORY, PATCH, DRIFT = 0.3, 0.2, 0.2, 0.1, 0.2
LEAST = 3
PEER_TEXTS = 3
PARTS = 9

Progress = Callable[[str], None]


class Stopped(Exception):
    """The check was stopped."""


def run_check(
    config: Config, pictures: Pictures, questions: int, progress: Progress, on_stop: Callable[[], None]
) -> Report:
    """Check a model, in a thread of its own, which is of no use to MLX afterwards.

    config: says which model, and its visual_tokens. questions: how many, about. progress: called at the start of each
    of PARTS parts.
    Ctrl-C stops before the next part, a second one at once; on_stop is called at the first one.
    Raises ModelError when there is no model, KeyboardInterrupt, or what a picture that the model cannot take raises.
    """
    stop = threading.Event()

    def begin(part: str) -> None:
        if stop.is_set():
            raise Stopped
        progress(part)

    def take_interrupt() -> bool:
        is_first = not stop.is_set()
        stop.set()
        if is_first:
            on_stop()
        return is_first

    begin('loading the model')
    try:
        return run_with_model(config, lambda vlm: check(vlm, config, pictures, questions, begin), take_interrupt)
    finally:
        if stop.is_set():
            raise KeyboardInterrupt


def check(vlm: Vlm, config: Config, pictures: Pictures, count: int, begin: Progress) -> Report:
    """Check a loaded model, on the thread that loaded it. Raises ImageError for a picture that it cannot take."""
    started_s, frames, machine = time.perf_counter(), pictures.frames, this_machine()
    grid = vlm.grid(frames[0].rgb)
    template = vlm.template('', 1)
    why_none = why_no_schema(vlm, SCHEMA)
    questions = make_questions(Answerer(vlm, template), STEADY, not why_none)
    # 1. Are cold answers those of mlx-vlm itself?
    begin('mlx-vlm')
    peer = Claim('mlx-vlm', "a cold answer is the one of mlx-vlm's own generate")
    with guarded(peer):
        texts = [each.text for each in questions if not each.choices and not each.json_schema]
        compare_with_mlx_vlm(peer, vlm, frames[0], template, texts[:PEER_TEXTS])
    # 2. Are warm answers the cold ones, on every exact level?
    levels = LevelCheck(vlm, frames, questions)
    claims = [peer]
    begin('full and reuse')
    claims += levels.full_and_reuse(_part(count, REUSE))
    begin('frame')
    claims.append(levels.frame(_part(count, FRAME)))
    begin('history')
    claims.append(levels.history(_part(count, HISTORY)))
    levels.documents.reason = why_none
    claims += [levels.passes, levels.documents]
    # 3. What can be claimed of patches, and how far do they drift?
    begin('patch')
    claims += PatchCheck(vlm, frames, questions).check(_part(count, PATCH), _part(count, DRIFT))
    for claim in claims:
        if not (claim.asked or claim.reason or claim.faults):
            claim.reason = 'nothing was asked'
    # 4. How long does each stage take, and what follows?
    begin('stages')
    stages = Stages(vlm, frames, questions)
    timed = Claim('stages', 'every stage runs')
    with guarded(timed):
        stages.measure()
    begin('sizes')
    found_sizes: list[Size] = []
    sizes_note = ''
    if not timed.faults:
        with guarded(timed):
            found_sizes, sizes_note = sizes(vlm, config.visual_tokens, stages, frames[0])
    begin('report')
    facts = model_facts(vlm)
    fits = None
    if levels.picture_tokens:
        fits = advice.memory(machine, facts, levels.picture_mb, levels.picture_tokens, peak_mb())
    can_patch = any(claim.name == 'patch all' and claim.mark == Mark.PASS for claim in claims)
    trust = decide(vlm, config)
    auto = f'here it is {trust.used.refresh_policy}. {trust.why}'
    height, width = frames[0].size
    return Report(
        facts,
        machine,
        PictureFacts(pictures.source, pictures.different, width, height, (grid.rows, grid.columns)),
        tuple(claims + [timed] * bool(timed.faults)),
        tuple(stages.found),
        tuple(found_sizes),
        sizes_note,
        advice.rates(stages),
        fits,
        tuple(advice.suggestions(config, stages, fits, can_patch, auto)) if fits and not timed.faults else (),
        time.perf_counter() - started_s,
    )


def _part(count: int, share: float) -> int:
    return max(LEAST, round(share * count))
