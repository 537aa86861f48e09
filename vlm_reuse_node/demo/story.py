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

"""How a tabletop changes over time: things appear, leave, move and change colour."""

from dataclasses import dataclass, replace

import numpy as np

from vlm_reuse_node.demo.tabletop import COLOURS, MOST_THINGS, Thing, moved, random_thing, random_things

EVENTS = ('appear', 'leave', 'move', 'recolour')
MOVE_S = 0.8  # how long a thing moves
STEADY_S = (2.2, 3.6)  # how long nothing happens, at least and at most


@dataclass(frozen=True)
class StorySpan:
    """A stretch of time, seconds from the start: the things when it begins and, where one is moving, when it ends."""

    from_s: float
    to_s: float
    things: tuple[Thing, ...]
    goal: tuple[Thing, ...] = ()

    @property
    def is_steady(self) -> bool:
        """Whether nothing moves."""
        return not self.goal

    def things_at(self, time_s: float) -> tuple[Thing, ...]:
        """Return the things at a time within the span."""
        if self.is_steady:
            return self.things
        share = (time_s - self.from_s) / (self.to_s - self.from_s)
        return tuple(
            replace(begin, x=begin.x + share * (end.x - begin.x), y=begin.y + share * (end.y - begin.y))
            for begin, end in zip(self.things, self.goal)
        )


def tell(rng: np.random.Generator, seconds: float) -> list[StorySpan]:
    """Return a story of this length: steady spans without gaps, with one event between each two."""
    things = random_things(rng, 3)
    spans: list[StorySpan] = []
    begin_s = 0.0
    while True:
        end_s = begin_s + rng.uniform(*STEADY_S)
        if end_s + MOVE_S + STEADY_S[0] > seconds:
            return [*spans, StorySpan(begin_s, seconds, things)]
        spans.append(StorySpan(begin_s, end_s, things))
        event, after = _happen(rng, things)
        if event == 'move':
            spans.append(StorySpan(end_s, end_s + MOVE_S, things, after))
            end_s += MOVE_S
        things = after
        begin_s = end_s


def _happen(rng: np.random.Generator, things: tuple[Thing, ...]) -> tuple[str, tuple[Thing, ...]]:
    """One event that is possible now, and the things after it."""
    while True:
        likely = (0.3, 0.1, 0.45, 0.15) if len(things) < 4 else (0.1, 0.3, 0.45, 0.15)
        event = EVENTS[rng.choice(4, p=likely)]
        after = after_event(rng, things, event)
        if after:
            return event, after


def after_event(rng: np.random.Generator, things: tuple[Thing, ...], event: str) -> tuple[Thing, ...] | None:
    """Return the things after one event of this kind, or None where it cannot happen now."""
    if event == 'appear':
        thing = random_thing(rng, things) if len(things) < MOST_THINGS else None
        return things + (thing,) if thing else None
    if not things:
        return None
    which = int(rng.integers(len(things)))
    others = things[:which] + things[which + 1 :]
    if event == 'leave':
        return others
    if event == 'move':
        pushed = moved(rng, things[which], others)
        return (*things[:which], pushed, *things[which + 1 :]) if pushed else None
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    painted = replace(things[which], colour=colour)
    if painted.name in {thing.name for thing in things}:
        return None
    return (*things[:which], painted, *things[which + 1 :])
