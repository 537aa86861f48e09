"""Train the embedded tabletop model, from nothing, on pictures that this project draws.

A small Qwen2.5-VL (transformers' class) learns in four stages; each resumes where it was interrupted:

1. see: the vision tower alone. Every cell's feature must name the colour and the shape of what lies in it, read off
   with the language model's own word embeddings; so the language model later finds the words in the picture.
2. answer: the language model alone, on the frozen tower's features of a pool of stories (kept in memory), with prompts
   of 1 to 8 pictures and many questions on each; from few objects to many.
3. window: the same on new stories, most prompts with several pictures and questions about what changed.
4. all: everything together on new pictures.

Only ordinary dense prompts are used. Many questions share one picture: each sees the pictures and itself, not the
others, at the positions it would have alone, which is what separate prompts would compute.

  python tools/train_tabletop.py [--out out/train_tabletop] [--device cpu] [--seed 0]
  python tools/train_tabletop.py --weights vlm_reuse_node/demo/tabletop_model   # go on with stage 4 from these
"""

import argparse
import json
import os
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tabletop_training.losses import Guide, answers_loss, seeing_loss  # noqa: E402
from tabletop_training.network import Tower, build, export, read_weights  # noqa: E402
from tabletop_training.pictures import CELLS, STORY_FRAMES, centre_labels, change_labels, stream  # noqa: E402
from tabletop_training.prompts import LATE_SHARES, SHARES, Prompts, ask_about, draw_window  # noqa: E402

from vlm_reuse_node.demo import model_files, tabletop

# (stage, steps, pictures a step, peak learning rate); a story prompt of n pictures counts as n pictures.
STAGES = (('see', 560, 48, 1.5e-3), ('answer', 3500, 64, 1.3e-3), ('window', 4000, 64, 1e-3), ('all', 200, 64, 5e-4))
POOL_STORIES = 3000


class Trainer:
    """The state of the training: model, optimiser, stage and step; saved every few minutes."""

    def __init__(self, args):
        self.args, self.out = args, Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(args.seed)
        self.tokenizer = model_files.build_tokenizer()
        self.model = build(self.tokenizer, args.device)
        self.guide = Guide(self.model.model.language_model).to(args.device)
        self.prompts, self.tower = Prompts(self.tokenizer), Tower(self.model.model.visual)
        self.stage, self.step, self.pool = 0, 0, None
        self.optimizer = None
        self.state = self.out / 'state.pt'
        if self.state.exists():
            self._resume()
        elif args.weights:
            self.model.load_state_dict(read_weights(Path(args.weights)), strict=False)
            self.stage = [name for name, *_ in STAGES].index(args.stage)

    def _resume(self):
        saved = torch.load(self.state, map_location=self.args.device)
        self.model.load_state_dict(saved['model'])
        self.guide.load_state_dict(saved['guide'], strict=False)
        self.stage, self.step = saved['stage'], saved['step']
        self.saved_optimizer = saved['optimizer']
        name = STAGES[self.stage][0] if self.stage < len(STAGES) else 'done'
        print(f"resumed at stage '{name}', step {self.step}", flush=True)

    def save(self):
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

    def run(self):
        for stage in range(self.stage, len(STAGES)):
            name, steps, pictures, rate = STAGES[stage]
            self._run_stage(name, int(steps * self.args.scale), pictures, rate)
            self.stage, self.step, self.optimizer, self.pool = stage + 1, 0, None, None
            (self.out / 'pool.pt').unlink(missing_ok=True)
            self.save()
        print(f'done: {self.out / "model"}', flush=True)

    def _run_stage(self, name, steps, pictures, rate):
        visual, language = self.model.model.visual, self.model.model.language_model
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
        if self.step and getattr(self, 'saved_optimizer', None):
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
        meter, saved = Meter(name, steps), time.monotonic()
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
            if time.monotonic() - saved > 150:
                self.save()
                saved = time.monotonic()

    def _feed(self, name, pictures):
        seed = self.args.seed + 1
        if name in ('answer', 'window'):
            self._fill_pool()
            return None
        if name == 'see':
            return stream(seed, pictures // 6, 6, True, self.step * self.args.workers, workers=self.args.workers)
        return stream(
            seed + 1,
            pictures // STORY_FRAMES,
            STORY_FRAMES,
            False,
            self.step * self.args.workers,
            workers=self.args.workers,
        )

    def _see_step(self, feed, pictures, progress):
        drawn, scenes = next(feed)
        features = self.tower(drawn.flatten(0, 1).to(self.args.device))
        loss, (colour, shape) = seeing_loss(self.model, features, [s for told in scenes for s in told], self.tokenizer)
        return loss, [('cell colour', colour, 1), ('cell shape', shape, 1)]

    def _fill_pool(self):
        """The frozen tower's features of many stories, (stories, 8, 108, hidden) float16, and what is in them.

        Kept in a file beside the state until the stage is over: filling takes minutes.
        """
        kept = self.out / 'pool.pt'
        if kept.exists():
            self.pool = torch.load(kept, weights_only=False)
            return
        wanted, started = max(1, int(POOL_STORIES * self.args.scale)), time.monotonic()
        print(f'filling the pool with {wanted} stories of {STORY_FRAMES} pictures', flush=True)
        feed = stream(self.args.seed + 6 + self.stage, 4, STORY_FRAMES, False, 0, workers=2)
        features, scenes = [], []
        with torch.no_grad(), torch.autocast(self.args.device.split(':')[0], torch.bfloat16):
            while len(scenes) < wanted:
                drawn, told = next(feed)
                out = self.tower(drawn.flatten(0, 1).to(self.args.device))
                features.append(out.half().view(len(told), STORY_FRAMES, CELLS, -1))
                scenes += told
        self.pool = (torch.cat(features), scenes)
        torch.save(self.pool, kept)
        print(f'pool filled in {time.monotonic() - started:.0f} s', flush=True)

    def _answer_step(self, feed, pictures, progress):
        windows = 0.0 if progress < 0.35 else 0.2 if progress < 0.7 else 0.5
        return self._pool_step(pictures, windows, 1 + int(progress * 25), SHARES)

    def _window_step(self, feed, pictures, progress):
        return self._pool_step(pictures, 0.6, tabletop.MOST_THINGS, LATE_SHARES)

    def _pool_step(self, pictures, windows, most, shares):
        """Loss of prompts about stories of the pool; windows: share with several pictures; most: things in one."""
        features, scenes = self.pool
        rng = np.random.default_rng((self.args.seed, 3, self.stage, self.step))
        frames = draw_window(rng, windows)
        cut, chosen = [], []
        while len(cut) < max(4, pictures // (frames + 1)):
            which, start = int(rng.integers(len(scenes))), int(rng.integers(STORY_FRAMES - frames + 1))
            window = scenes[which][start : start + frames]
            if len(window[-1]) > most and rng.random() < 0.9:
                continue
            cut.append(window)
            chosen.append(features[which, start : start + frames].flatten(0, 1).float())
        return self._prompts_loss(rng, torch.stack(chosen), cut, 0.3, shares)

    def _all_step(self, feed, pictures, progress):
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

    def _prompts_loss(self, rng, features, cut, guided: float, shares: dict[str, float]):
        """Loss of twelve questions about each window, asked in these shares, and the guide's at this weight.

        features: (windows, frames * 108, hidden). cut: the scenes of each window, oldest first.
        """
        frames = len(cut[0])
        is_window = 2 <= frames <= 4
        asked = [ask_about(rng, window, 12, is_window, 0.5, shares) for window in cut]
        packed = self.prompts.pack(frames, asked, [window[-1] for window in cut], self.args.device)
        loss, tally = answers_loss(self.model, features, packed, self.prompts.image)
        changes = np.full((len(cut), frames, CELLS, 4), -100)
        for index, window in enumerate(cut if is_window else ()):
            changes[index, 1:] = [change_labels(window[0], now) for now in window[1:]]
        changes = torch.from_numpy(changes).to(self.args.device)
        centres = torch.from_numpy(np.array([[centre_labels(now) for now in window] for window in cut]))
        guide = self.guide.loss(
            packed[0] == self.prompts.image, packed[4], packed[5], changes, centres.to(self.args.device)
        )
        return loss + guided * guide, [*tally, *([('cell change', self.guide.told, 1)] if is_window else [])]


class Meter:
    """Progress for a person: loss, share right by kind, speed, time left."""

    def __init__(self, name: str, steps: int):
        self.name, self.steps, self.began = name, steps, time.monotonic()
        self._reset()

    def _reset(self):
        self.losses, self.tally, self.pictures, self.since = [], defaultdict(lambda: [0, 0]), 0, time.monotonic()

    def add(self, step, loss, tally, pictures):
        """Count one step; print every 30 seconds."""
        self.losses.append(loss)
        self.pictures += pictures
        for kind, right, asked in tally:
            self.tally[kind][0] += right
            self.tally[kind][1] += asked
        passed = time.monotonic() - self.since
        if passed < 30 and step != self.steps:
            return
        rate = len(self.losses) / passed
        shares = ' '.join(f'{kind}={100 * right / asked:.0f}' for kind, (right, asked) in self.tally.items() if asked)
        print(
            f'[{self.name}] {step}/{self.steps} loss {np.mean(self.losses):.3f} '
            f'{self.pictures / passed:.0f} pictures/s {(self.steps - step) / rate / 60:.0f} min left | {shares}',
            flush=True,
        )
        self._reset()


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
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


def main(argv=None) -> int:
    """Train, or go on training."""
    args = build_parser().parse_args(argv)
    trainer = Trainer(args)
    (trainer.out / 'training.json').write_text(json.dumps({'stages': STAGES, 'seed': args.seed}) + '\n')
    trainer.run()
    return 0


if __name__ == '__main__':
    sys.exit(main())
