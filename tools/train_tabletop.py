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

"""Train the embedded tabletop model, from nothing, on pictures that this project draws.

A small Qwen2.5-VL (transformers' class) learns in four stages; each resumes where it was interrupted:

1. see: the vision tower alone. Every cell's feature must name the colour and the shape of what lies in it. The word
   embeddings of the language model are the classifier, so that it later finds the words in the picture.
2. answer: the language model alone, on the frozen tower's features of a pool of stories (kept in memory). Prompts have
   1 to 8 pictures and many questions on each; pictures go from few objects to many.
3. window: the same on new stories. Most prompts have several pictures and questions about what changed.
4. all: everything together on new pictures.

Prompts are ordinary dense ones. Many questions share one picture: each sees the pictures and itself, but not the
others, at the positions that it would have alone. So it computes what a prompt of its own would.

  python tools/train_tabletop.py [--out out/train_tabletop] [--device cpu] [--seed 0]
  python tools/train_tabletop.py --weights vlm_reuse_node/demo/tabletop_model   # go on with stage 4 from these
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tabletop_training.losses import Guide, Tally, answers_loss, seeing_loss  # noqa: E402
from tabletop_training.meter import Meter  # noqa: E402
from tabletop_training.network import Tower, build, export, read_weights  # noqa: E402
from tabletop_training.pictures import (  # noqa: E402
    CELLS,
    STORY_FRAMES,
    Batch,
    Stories,
    Things,
    centre_labels,
    change_labels,
    stream,
)
from tabletop_training.prompts import LATE_SHARES, SHARES, Prompts, ask_about, draw_window  # noqa: E402

from vlm_reuse_node.demo import model_files, tabletop

# (stage, steps, pictures a step, peak learning rate); a story prompt of n pictures counts as n pictures.
STAGES = (('see', 560, 48, 1.5e-3), ('answer', 3500, 64, 1.3e-3), ('window', 4000, 64, 1e-3), ('all', 200, 64, 5e-4))
POOL_STORIES = 3000
StepResult = tuple[torch.Tensor, list[Tally]]  # the loss, and what was right


class Trainer:
    """The state of the training: model, optimiser, stage and step; saved every few minutes."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Make the model, or resume where the training stopped."""
        self.args = args
        self.out = Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        self.tokenizer = model_files.build_tokenizer()
        self.model = build(self.tokenizer, args.device)
        self.guide = Guide(self.model.model.language_model).to(args.device)
        self.prompts = Prompts(self.tokenizer)
        self.tower = Tower(self.model.model.visual)
        self.stage = 0
        self.step = 0
        self.pool: tuple[torch.Tensor, list[list[Things]]] | None = None
        self.optimizer: torch.optim.AdamW | None = None
        self.saved_optimizer: dict | None = None
        self.state = self.out / 'state.pt'
        if self.state.exists():
            self._resume()
        elif args.weights:
            self.model.load_state_dict(read_weights(Path(args.weights)), strict=False)
            self.stage = [name for name, *_ in STAGES].index(args.stage)

    def _resume(self) -> None:
        saved = torch.load(self.state, map_location=self.args.device)
        self.model.load_state_dict(saved['model'])
        self.guide.load_state_dict(saved['guide'], strict=False)
        self.stage = saved['stage']
        self.step = saved['step']
        self.saved_optimizer = saved['optimizer']
        name = STAGES[self.stage][0] if self.stage < len(STAGES) else 'done'
        print(f"resumed at stage '{name}', step {self.step}", flush=True)

    def save(self) -> None:
        """Write the state to resume from, and the model."""
        state = {
            'model': self.model.state_dict(),
            'guide': self.guide.state_dict(),
            'stage': self.stage,
            'step': self.step,
            'optimizer': self.optimizer.state_dict() if self.optimizer else None,
        }
        torch.save(state, self.state.with_suffix('.part'))
        os.replace(self.state.with_suffix('.part'), self.state)
        export(self.model, self.out / 'model')

    def run(self) -> None:
        """Train all stages that are left."""
        for stage in range(self.stage, len(STAGES)):
            name, steps, pictures, rate = STAGES[stage]
            self._run_stage(name, int(steps * self.args.scale), pictures, rate)
            self.stage = stage + 1
            self.step = 0
            self.optimizer = None
            self.pool = None
            (self.out / 'pool.pt').unlink(missing_ok=True)
            self.save()
        print(f'done: {self.out / "model"}', flush=True)

    def _run_stage(self, name: str, steps: int, pictures: int, rate: float) -> None:
        """Train one stage. pictures: of a step. rate: the highest learning rate."""
        visual = self.model.model.visual
        language = self.model.model.language_model
        parameters = {
            'see': [*visual.parameters(), *language.embed_tokens.parameters()],
            'answer': list(language.parameters()),
            'window': list(language.parameters()),
            'all': list(self.model.parameters()),
        }[name]
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in parameters:
            parameter.requires_grad_(True)
        parameters += [] if name == 'see' else self.guide.parameters()
        self.optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.02)
        first = self.step
        if self.step and self.saved_optimizer:
            try:
                self.optimizer.load_state_dict(self.saved_optimizer)
                first = 0
            except ValueError:
                print('the guide has changed since: the optimiser starts anew', flush=True)
        step_of = {
            'see': self._see_step,
            'answer': self._answer_step,
            'window': self._window_step,
            'all': self._all_step,
        }[name]
        feed = self._feed(name, pictures)
        meter = Meter(name, steps)
        saved_s = time.monotonic()
        while self.step < steps:
            warm = min(1.0, (self.step - first + 1) / 100)
            falling = min(1.0, 4 * (1 - self.step / steps) + 0.02)  # steady for three quarters, then down
            self.optimizer.param_groups[0]['lr'] = self.args.rate * rate * warm * falling
            with torch.autocast(self.args.device.split(':')[0], torch.bfloat16):
                loss, tally = step_of(feed, pictures, self.step / steps)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            self.optimizer.step()
            self.step += 1
            meter.add(self.step, float(loss.detach()), tally, pictures)
            if time.monotonic() - saved_s > 150:
                self.save()
                saved_s = time.monotonic()

    def _feed(self, name: str, pictures: int) -> Iterator[Batch]:
        """Stories of a stage; none where it takes them from the pool."""
        seed = self.args.seed + 1
        start = self.step * self.args.workers
        if name == 'see':
            return stream(Stories(seed, pictures // 6, 6, True, start), self.args.workers)
        if name == 'all':
            stories = Stories(seed + 1, pictures // STORY_FRAMES, STORY_FRAMES, False, start)
            return stream(stories, self.args.workers)
        self._fill_pool()
        return iter(())

    def _see_step(self, feed: Iterator[Batch], pictures: int, progress: float) -> StepResult:
        drawn, scenes = next(feed)
        features = self.tower(drawn.flatten(0, 1).to(self.args.device))
        loss, (colour, shape) = seeing_loss(self.model, features, [s for told in scenes for s in told], self.tokenizer)
        return loss, [('cell colour', colour, 1), ('cell shape', shape, 1)]

    def _fill_pool(self) -> None:
        """Compute the frozen tower's features of many stories, (stories, 8, 108, hidden) float16.

        They are kept in a file beside the state until the stage is over, because this takes minutes.
        """
        kept = self.out / 'pool.pt'
        if kept.exists():
            self.pool = torch.load(kept, weights_only=False)
            return
        wanted = max(1, int(POOL_STORIES * self.args.scale))
        started_s = time.monotonic()
        print(f'filling the pool with {wanted} stories of {STORY_FRAMES} pictures', flush=True)
        feed = stream(Stories(self.args.seed + 6 + self.stage, 4, STORY_FRAMES, False, 0), workers=2)
        features = []
        scenes: list[list[Things]] = []
        with torch.no_grad(), torch.autocast(self.args.device.split(':')[0], torch.bfloat16):
            while len(scenes) < wanted:
                drawn, told = next(feed)
                out = self.tower(drawn.flatten(0, 1).to(self.args.device))
                features.append(out.half().view(len(told), STORY_FRAMES, CELLS, -1))
                scenes += told
        self.pool = (torch.cat(features), scenes)
        torch.save(self.pool, kept)
        print(f'pool filled in {time.monotonic() - started_s:.0f} s', flush=True)

    def _answer_step(self, feed: Iterator[Batch], pictures: int, progress: float) -> StepResult:
        windows = 0.0 if progress < 0.35 else 0.2 if progress < 0.7 else 0.5
        return self._pool_step(pictures, windows, 1 + int(progress * 25), SHARES)

    def _window_step(self, feed: Iterator[Batch], pictures: int, progress: float) -> StepResult:
        return self._pool_step(pictures, 0.6, tabletop.MOST_THINGS, LATE_SHARES)

    def _pool_step(self, pictures: int, windows: float, most: int, shares: dict[str, float]) -> StepResult:
        """Loss of prompts about stories of the pool. windows: share with several pictures. most: things in one."""
        features, scenes = self.pool
        rng = np.random.default_rng((self.args.seed, 3, self.stage, self.step))
        frames = draw_window(rng, windows)
        cut: list[list[Things]] = []
        chosen = []
        while len(cut) < max(4, pictures // (frames + 1)):
            which = int(rng.integers(len(scenes)))
            start = int(rng.integers(STORY_FRAMES - frames + 1))
            window = scenes[which][start : start + frames]
            if len(window[-1]) > most and rng.random() < 0.9:
                continue
            cut.append(window)
            chosen.append(features[which, start : start + frames].flatten(0, 1).float())
        return self._prompts_loss(rng, torch.stack(chosen), cut, 0.3, shares)

    def _all_step(self, feed: Iterator[Batch], pictures: int, progress: float) -> StepResult:
        drawn, scenes = next(feed)
        rng = np.random.default_rng((self.args.seed, 4, self.step))
        features = self.tower(drawn.flatten(0, 1).to(self.args.device))
        features = features.view(len(scenes), STORY_FRAMES, CELLS, -1)
        seen, _ = seeing_loss(self.model, features.flatten(0, 1), [s for told in scenes for s in told], self.tokenizer)
        frames = int(rng.choice((1, 1, 2, 2, 4, 4, 8)))
        windows = features.view(len(scenes) * (STORY_FRAMES // frames), frames * CELLS, -1)
        cut = [told[start : start + frames] for told in scenes for start in range(0, STORY_FRAMES, frames)]
        loss, tally = self._prompts_loss(rng, windows, cut, 0.1, LATE_SHARES)
        return loss + 0.1 * seen, tally

    def _prompts_loss(
        self,
        rng: np.random.Generator,
        features: torch.Tensor,
        cut: list[list[Things]],
        guided: float,
        shares: dict[str, float],
    ) -> StepResult:
        """Loss of twelve questions about each window, plus the guide's loss.

        features: (windows, frames * 108, hidden). cut: the scenes of each window, oldest first. guided: weight of the
        guide's loss. shares: how often each kind is asked.
        """
        frames = len(cut[0])
        is_window = 2 <= frames <= 4
        asked = [ask_about(rng, window, 12, is_window, 0.5, shares) for window in cut]
        packed = self.prompts.pack(frames, asked, [window[-1] for window in cut], self.args.device)
        loss, tally = answers_loss(self.model, features, packed, self.prompts.image)
        labels = np.full((len(cut), frames, CELLS, 4), -100)
        for index, window in enumerate(cut if is_window else ()):
            labels[index, 1:] = [change_labels(window[0], now) for now in window[1:]]
        changes = torch.from_numpy(labels).to(self.args.device)
        centres = torch.from_numpy(np.array([[centre_labels(now) for now in window] for window in cut]))
        is_cell = packed.ids == self.prompts.image
        guide = self.guide.loss(is_cell, packed.mentions, packed.relations, changes, centres.to(self.args.device))
        return loss + guided * guide, [*tally, *([('cell change', self.guide.told, 1)] if is_window else [])]


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', default='out/train_tabletop', help='folder of the state to resume from, and the model')
    parser.add_argument('--weights', help='a model directory to start --stage from, where there is no state to resume')
    parser.add_argument(
        '--stage', choices=[name for name, *_ in STAGES], default='all', help='the stage that --weights start with'
    )
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, default=1, help='processes that draw pictures')
    parser.add_argument('--scale', type=float, default=1.0, help='share of the steps (a trial run: 0.01)')
    parser.add_argument(
        '--rate', type=float, default=1.0, help='share of the learning rates; below 1 to go on from trained weights'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train, or go on training."""
    args = build_parser().parse_args(argv)
    trainer = Trainer(args)
    (trainer.out / 'training.json').write_text(json.dumps({'stages': STAGES, 'seed': args.seed}) + '\n')
    trainer.run()
    return 0


if __name__ == '__main__':
    sys.exit(main())
