"""Stories to learn from: pictures of one table over time, drawn ahead by worker processes."""

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


def draw_story(rng: np.random.Generator, frames: int, shuffle: bool = False):
    """(frames, 252, 336, 3) uint8 pictures of one table over time, and the things in each."""
    table = tabletop.Tabletop(rng, tabletop.WIDTH, tabletop.HEIGHT)
    sensor = tabletop.Sensor(
        noise=rng.uniform(0.5, 5.0),
        jpeg_quality=int(rng.choice((0, 0, rng.integers(50, 96)))),
        brightness=rng.uniform(0.8, 1.2),
    )
    scenes, pictures = [tabletop.random_things(rng, int(rng.integers(0 if rng.random() < 0.2 else 1, 6)))], []
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

    def __init__(self, seed: int, stories: int, frames: int, shuffle: bool, start: int):
        self.seed, self.stories, self.frames, self.shuffle, self.start = seed, stories, frames, shuffle, start

    def __iter__(self):
        cv2.setNumThreads(1)
        info = torch.utils.data.get_worker_info()
        batch = self.start + (info.id if info else 0)
        while True:
            rng = np.random.default_rng((self.seed, batch, self.frames))
            told = [draw_story(rng, self.frames, self.shuffle) for _ in range(self.stories)]
            yield np.stack([pictures for pictures, _ in told]), [scenes for _, scenes in told]
            batch += info.num_workers if info else 1


def stream(*args, workers: int = 1):
    """Stories drawn ahead by worker processes."""
    return iter(
        torch.utils.data.DataLoader(
            Stories(*args), batch_size=None, num_workers=workers, prefetch_factor=4, collate_fn=_as_drawn
        )
    )


def _as_drawn(batch):
    pictures, scenes = batch
    return torch.from_numpy(pictures), scenes


@lru_cache(maxsize=50_000)
def cell_labels(things) -> tuple[np.ndarray, np.ndarray]:
    """Per cell, (108,): index of the thing that fills at least a quarter of it (-1: empty, -2: hardly any), share."""
    owner, share = np.full(CELLS, -1), np.zeros(CELLS, np.float32)
    for index, thing in enumerate(things):
        mask = np.zeros((tabletop.HEIGHT, tabletop.WIDTH), np.uint8)
        cv2.fillPoly(mask, [np.round(tabletop.outline(thing)).astype(np.int32)], 1)
        cover = mask.reshape(ROWS, 28, COLUMNS, 28).mean((1, 3)).ravel()
        owner[(cover >= 0.25) & (cover > share)] = index
        owner[(owner == -1) & (cover > 0.02)] = -2
        share = np.maximum(share, cover)
    return owner, share


@lru_cache(maxsize=50_000)
def centre_labels(things) -> np.ndarray:
    """Per cell, (108,) float32: 1 where the centre of a thing is."""
    labels = np.zeros(CELLS, np.float32)
    labels[[int(thing.y // 28) * COLUMNS + int(thing.x // 28) for thing in things]] = 1
    return labels


@lru_cache(maxsize=50_000)
def change_labels(first, now) -> np.ndarray:
    """What changed in each cell from the first picture to this one, (108, 4) int, -100 where it has no answer.

    Columns: index in CHANGES; which way the thing there moved; colour and shape of the thing that was there and is not.
    """
    labels = np.full((CELLS, 4), -100)
    before, places = {thing.name: thing for thing in first}, {(thing.x, thing.y) for thing in first}
    was, here = cell_labels(first)[0], cell_labels(now)[0]
    labels[(was == -1) & (here == -1), 0] = CHANGES.index('empty')
    for index, thing in enumerate(now):
        cells, way = here == index, thing.name in before and scene_truth.direction(before[thing.name], thing)
        if way:
            labels[cells, 0], labels[cells, 1] = CHANGES.index('moved'), words.DIRECTIONS.index(way)
        elif thing.name in before:
            labels[cells, 0] = CHANGES.index('stayed')
        elif (thing.x, thing.y) not in places:  # else it was painted, which nobody is asked about
            labels[cells, 0] = CHANGES.index('appeared')
    for index, thing in enumerate(first):
        cells = (was == index) & (here == -1)
        labels[cells, 0] = CHANGES.index('vacated')
        labels[cells, 2:] = list(tabletop.COLOURS).index(thing.colour), tabletop.SHAPES.index(thing.shape)
    return labels
