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

"""Stories to learn from: pictures of one table over time, drawn ahead by worker processes."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import cv2
import numpy as np
import torch

from vlm_reuse_node.demo import model_files, scene_truth, story, tabletop, words

ROWS, COLUMNS = model_files.ROWS, model_files.COLUMNS
CELLS = ROWS * COLUMNS
STORY_FRAMES = 8
CHANGES = ('empty', 'stayed', 'moved', 'appeared', 'vacated')
Things = tuple[tabletop.Thing, ...]
Batch = tuple[torch.Tensor, list[list[Things]]]  # (stories, frames, 252, 336, 3) uint8, and the things in each picture


def draw_story(rng: np.random.Generator, frames: int, shuffle: bool = False) -> tuple[np.ndarray, list[Things]]:
    """Return (frames, 252, 336, 3) uint8 pictures of one table over time, and the things in each.

    shuffle: the scenes have nothing to do with each other.
    """
    table = tabletop.Tabletop(rng, tabletop.WIDTH, tabletop.HEIGHT)
    sensor = tabletop.Sensor(
        noise=rng.uniform(0.5, 5.0),
        jpeg_quality=int(rng.choice((0, 0, int(rng.integers(50, 96))))),
        brightness=rng.uniform(0.8, 1.2),
    )
    scenes = [tabletop.random_things(rng, int(rng.integers(0 if rng.random() < 0.2 else 1, 6)))]
    pictures = []
    while len(scenes) < frames:
        if shuffle:
            scenes.append(tabletop.random_things(rng, int(rng.integers(1, 6))))
            continue
        things = scenes[-1]
        for _ in range(int(rng.choice((0, 0, 1, 1, 1, 2)))):
            event = story.EVENTS[rng.choice(4, p=(0.32, 0.28, 0.32, 0.08))]
            things = story.after_event(rng, things, event) or things
        scenes.append(things)
    for things in scenes:
        flicker = replace(sensor, brightness=sensor.brightness * rng.uniform(0.97, 1.03))
        pictures.append(tabletop.sense(table.picture(things), flicker, rng))
    return np.stack(pictures), scenes


class Stories(torch.utils.data.IterableDataset):
    """Endless batches of stories; batch k of a seed is the same whenever it is drawn."""

    def __init__(self, seed: int, stories: int, frames: int, shuffle: bool, start: int) -> None:
        """stories: in a batch. frames: in a story. start: number of the first batch."""
        self.seed = seed
        self.stories = stories
        self.frames = frames
        self.shuffle = shuffle
        self.start = start

    def __iter__(self) -> Iterator[tuple[np.ndarray, list[list[Things]]]]:
        cv2.setNumThreads(1)
        info = torch.utils.data.get_worker_info()
        batch = self.start + (info.id if info else 0)
        while True:
            rng = np.random.default_rng((self.seed, batch, self.frames))
            told = [draw_story(rng, self.frames, self.shuffle) for _ in range(self.stories)]
            yield np.stack([pictures for pictures, _ in told]), [scenes for _, scenes in told]
            batch += info.num_workers if info else 1


def stream(stories: Stories, workers: int = 1) -> Iterator[Batch]:
    """Return batches of stories, drawn ahead by worker processes."""
    loader = torch.utils.data.DataLoader(
        stories, batch_size=None, num_workers=workers, prefetch_factor=4, collate_fn=_as_drawn
    )
    return iter(loader)


def _as_drawn(batch: tuple[np.ndarray, list[list[Things]]]) -> Batch:
    pictures, scenes = batch
    return torch.from_numpy(pictures), scenes


@lru_cache(maxsize=50_000)
def cell_labels(things: Things) -> tuple[np.ndarray, np.ndarray]:
    """Return for each cell, (108,): the index of the thing in it (-1: empty), and the share of the cell that it fills.

    A thing counts from a quarter of the cell on; -2: some thing fills less than that.
    """
    owner = np.full(CELLS, -1)
    share = np.zeros(CELLS, np.float32)
    for index, thing in enumerate(things):
        mask = np.zeros((tabletop.HEIGHT, tabletop.WIDTH), np.uint8)
        cv2.fillPoly(mask, [np.round(tabletop.outline(thing)).astype(np.int32)], 1)
        cover = mask.reshape(ROWS, 28, COLUMNS, 28).mean((1, 3)).ravel()
        owner[(cover >= 0.25) & (cover > share)] = index
        owner[(owner == -1) & (cover > 0.02)] = -2
        share = np.maximum(share, cover)
    return owner, share


@lru_cache(maxsize=50_000)
def centre_labels(things: Things) -> np.ndarray:
    """Return for each cell, (108,) float32: 1 where the centre of a thing is."""
    labels = np.zeros(CELLS, np.float32)
    labels[[int(thing.y // 28) * COLUMNS + int(thing.x // 28) for thing in things]] = 1
    return labels


@lru_cache(maxsize=50_000)
def change_labels(first: Things, now: Things) -> np.ndarray:
    """Return what changed in each cell from the first picture to this one, (108, 4) int, -100: no label.

    Columns: index in CHANGES; which way the thing there moved; colour and shape of a thing that is no longer there.
    """
    labels = np.full((CELLS, 4), -100)
    before = {thing.name: thing for thing in first}
    places = {(thing.x, thing.y) for thing in first}
    was, _ = cell_labels(first)
    here, _ = cell_labels(now)
    labels[(was == -1) & (here == -1), 0] = CHANGES.index('empty')
    for index, thing in enumerate(now):
        cells = here == index
        way = scene_truth.direction(before[thing.name], thing) if thing.name in before else ''
        if way:
            labels[cells, 0] = CHANGES.index('moved')
            labels[cells, 1] = words.DIRECTIONS.index(way)
        elif thing.name in before:
            labels[cells, 0] = CHANGES.index('stayed')
        elif (thing.x, thing.y) not in places:  # else it was painted, which nobody is asked about
            labels[cells, 0] = CHANGES.index('appeared')
    for index, thing in enumerate(first):
        cells = (was == index) & (here == -1)
        labels[cells, 0] = CHANGES.index('vacated')
        labels[cells, 2] = list(tabletop.COLOURS).index(thing.colour)
        labels[cells, 3] = tabletop.SHAPES.index(thing.shape)
    return labels
