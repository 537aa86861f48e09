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

"""The pictures that the check looks at: recorded, live, or generated ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from vlm_reuse_node.config import Config
from vlm_reuse_node.demo.tabletop import Sensor, Tabletop, moved, random_things, sense
from vlm_reuse_node.replay.bag import Bag, Selection
from vlm_reuse_node.replay.storage.channel import BagError
from vlm_reuse_node.scene.frame import Frame

COUNT = 4
WIDTH, HEIGHT = 640, 480  # of generated pictures: a common camera
THINGS = 4
GAP_S = 1.0  # between two recorded pictures


@dataclass(frozen=True)
class Pictures:
    """Four pictures of one size, a second apart. source: where they come from, in words. different: how many differ."""

    frames: tuple[Frame, ...]
    source: str
    different: int


def generated() -> Pictures:
    """Draw a tabletop, and push one thing from picture to picture."""
    rng = np.random.default_rng(0)
    table, things = Tabletop(rng, WIDTH, HEIGHT), random_things(rng, THINGS)
    frames = []
    for number in range(COUNT):
        frames.append(Frame(sense(table.picture(things), Sensor(), np.random.default_rng((0, number)))))
        others = things[1:]
        things = (*others, moved(rng, things[0], others) or things[0])
    return in_turn(frames, 'generated tabletops')


def recorded(path: Path, topic: str) -> Pictures:
    """Read pictures of a bag, spread over its first seconds. topic: '' takes the only camera's.

    Raises BagError when there is none.
    """
    topics = (topic,) if topic else ()
    with_gap = Bag(path, Selection(topics))
    gap_s = min(GAP_S, with_gap.seconds / COUNT)
    with_gap.close()
    bag = Bag(path, Selection(topics, rate_limit_hz=1 / gap_s if gap_s else 0.0, max_pixels=Config().max_image_pixels))
    try:
        frames = list(islice(_of_one_size(bag.frames()), COUNT))
    finally:
        bag.close()
    if not frames:
        raise BagError(
            f"The recording '{path}' has no picture that can be used. {' '.join(bag.damage)} Expected a bag with "
            'sensor_msgs/Image or CompressedImage; ros2 bag info lists its topics.'
        )
    return in_turn(frames, f"of recording '{path.name}', topic {bag.topics[0].name}")


def in_turn(frames: Iterable[Frame], source: str) -> Pictures:
    """Make four pictures of at least one, again in turn where there are fewer, with stamps a second apart."""
    found = list(islice(_of_one_size(frames), COUNT))
    stamped = (
        replace(frame, stamp_ns=number * 1_000_000_000, received_ns=0)
        for number, frame in enumerate(islice(cycle(found), COUNT), start=1)
    )
    different = len({frame.rgb.tobytes() for frame in found})
    return Pictures(tuple(stamped), source, different)


def _of_one_size(frames: Iterable[Frame]) -> Iterator[Frame]:
    """Those that have the size of the first one."""
    size = None
    for frame in frames:
        size = size or frame.size
        if frame.size == size:
            yield frame
