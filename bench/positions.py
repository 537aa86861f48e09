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

"""What a patch costs depending on where in the picture the change is.

A rectangle of 5 % of the cells changes at some positions: evenly spread from top to bottom, anywhere between left
and right, in random order. At each of them a session that patches and one that computes pictures whole see frames in
random order. The second one takes two turns, `frame` and `again`, which differ by noise alone. Each position has the
medians of its rounds: processor time of one `SceneSession.observe`.
A recurrent language model reads everything behind the last checkpoint before the change again, so for it the position
counts. Other models compute the changed cells alone.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from statistics import median
from typing import cast

from rectangle_camera import RectangleCamera
from timing import Arm, Run, in_random_order, run

from vlm_reuse_node.model.vlm import Vlm
from vlm_reuse_node.scene.refresh import Level
from vlm_reuse_node.session.scene_session import SceneSession
from vlm_reuse_node.session.state import State

PERCENT = 5
ROUNDS = 3


def measure(vlm: Vlm, patching: SceneSession, whole: SceneSession, positions: int, seed: int = 0) -> Iterator[dict]:
    """Yield one row for each position.

    patching, whole: sessions that have seen the same pictures; the first one patches.
    """
    chance, state = random.Random(seed), cast(State, whole.state)
    live = state.live
    cells = -(-PERCENT * live.grid.cells // 100)
    for number in chance.sample(range(positions), positions):
        newest_ns = max(session.newest.stamp_ns for session in (patching, whole) if session.newest)
        first = replace(live.frame, stamp_ns=newest_ns + 1)
        place = number / max(1, positions - 1), chance.random()
        cameras = {session: RectangleCamera(first, live.grid, cells, place) for session in (patching, whole)}
        for session in cameras:
            session.observe(first, force=True)
        sessions = {'patch': patching, 'frame': whole, 'again': whole}
        arms = {name: _arm(vlm, session, cameras[session]) for name, session in sessions.items()}
        runs = in_random_order(arms, ROUNDS, chance)
        levels = {each.result.level for each in runs['patch']}
        if levels != {Level.PATCH}:
            raise RuntimeError(f'The levels were {sorted(levels)}; expected patch.')
        ms = {name: median(each.cpu_ms for each in of_arm) for name, of_arm in runs.items()}
        yield {
            'cells': cells,
            'cells_total': live.grid.cells,
            'first_cell': int(cameras[patching].numbers[0]),
            'computed_cells': runs['patch'][0].result.visual_tokens_refreshed,
            **{f'{name}_cpu_ms': value for name, value in ms.items()},
            'patch_share': ms['patch'] / ms['frame'],
            'noise_share': ms['again'] / ms['frame'],
        }


def summary(rows: list[dict]) -> str:
    """Return a line: the median, the best and the worst position."""
    shares, noise = (sorted(row[name] for row in rows) for name in ('patch_share', 'noise_share'))
    return (
        f'{PERCENT} % changed at {len(rows)} positions: patch/frame {median(shares):.2f} '
        f'({shares[0]:.2f} to {shares[-1]:.2f}); frame/frame {median(noise):.2f} ({noise[0]:.2f} to {noise[-1]:.2f})'
    )


def _arm(vlm: Vlm, session: SceneSession, camera: RectangleCamera) -> Arm:
    """Observe the camera's next frame."""

    def arm() -> Run:
        frame = camera.frame()
        return run(vlm, lambda: session.observe(frame))

    return arm
