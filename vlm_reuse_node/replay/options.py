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

"""The replay's command line, and the jobs that it asks for."""

import argparse
import math
from dataclasses import fields
from pathlib import Path

import yaml

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.replay.arms import ARMS
from vlm_reuse_node.replay.bag import Bag, Selection
from vlm_reuse_node.replay.bag_reader import EXPECTED, bag_name
from vlm_reuse_node.replay.job import Job
from vlm_reuse_node.replay.questions import read_questions
from vlm_reuse_node.replay.storage.channel import one_line
from vlm_reuse_node.terminal import Parser


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='vlm-reuse-replay',
        description='Replay ROS 2 bags through a vision-language model that keeps its state, '
        'ask questions along the way, and report speed and paired drift against cold-dense.',
        epilog='Exit codes: 0 every recording was replayed to its end, and something was answered; 1 not so, or a '
        'failure; 2 wrong usage; 130 interrupted (--resume goes on).',
    )
    add_recording_options(parser)
    add_out_options(parser, Path('out/replay'))
    parser.add_argument('--arms', default='all', help=f'all, or some of {",".join(ARMS)}; cold and auto always run')
    parser.add_argument(
        '--window',
        type=float,
        default=8.0,
        metavar='S',
        help='seconds over which the four pictures of low-rate are spread',
    )
    parser.add_argument(
        '--order-seed', type=int, default=0, metavar='N', help='of the random order in which the arms are asked'
    )
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='bags at a time, a process each')
    parser.add_argument('--ray', metavar='ADDRESS', help="a Ray cluster, one task a bag ('local' starts one)")
    parser.add_argument('--resume', action='store_true', help='go on where an interrupted run in --out stopped')
    parser.add_argument('--compare', type=Path, metavar='OLD.json', help='results of an earlier run to compare with')
    parser.add_argument('--json', action='store_true', help='print the summary as JSON instead of a table')
    return parser


def add_out_options(parser: argparse.ArgumentParser, default: Path) -> None:
    """Add where results go, and whether they may replace others."""
    parser.add_argument('--out', type=Path, default=default, help='folder for everything that is written')
    parser.add_argument('--overwrite', action='store_true', help='replace the results of an earlier run in --out')


def keep_results(args: argparse.Namespace, name: str, choices: str = '') -> None:
    """Raise ConfigError where --out has results that nobody said may be replaced.

    name: of the file that every finished run writes. choices: what else may be done about it.
    """
    if not args.overwrite and (args.out / name).exists():
        raise ConfigError(
            f"'{args.out}' has the {name} of an earlier run; name another --out, {choices}or give --overwrite to "
            'replace it.'
        )


def add_recording_options(parser: argparse.ArgumentParser) -> None:
    """Add what every program needs that puts questions to recordings."""
    parser.add_argument('bags', nargs='+', type=Path, metavar='BAG', help=f'recording: {EXPECTED}')
    parser.add_argument(
        '--questions',
        type=Path,
        action='append',
        default=[],
        metavar='FILE',
        help='YAML (docs/replay.md): one for all bags, or one for each; default: a general set',
    )
    parser.add_argument('--model', default=Config().model, help='tabletop, a model directory or a hub name')
    parser.add_argument(
        '--topic', action='append', default=[], help='image topic, once for each camera; default: the only one'
    )
    parser.add_argument('--start', type=float, default=0.0, metavar='S', help='seconds from the first picture')
    parser.add_argument('--duration', type=float, default=math.inf, metavar='S', help='seconds to replay')
    parser.add_argument(
        '--rate-limit', type=float, default=0.0, metavar='HZ', help='most pictures a second, roughly; 0: all'
    )
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        metavar='NAME=VALUE',
        help='a parameter of the node, such as history_frames=4 (README: parameters)',
    )


def make_jobs(args: argparse.Namespace) -> tuple[list[Job], dict[str, str], float]:
    """Return a job for each bag that can be opened, why others cannot, and the seconds there are to replay.

    Raises ConfigError for an option that cannot be used.
    """
    arms = _arms(args.arms)
    config = config_of(args)
    selection = selection_of(args)
    todo: list[Job] = []
    failed: dict[str, str] = {}
    seconds = 0.0
    for path, name, questions in zip(args.bags, names_of(args.bags), questions_files(args)):
        try:
            bag = Bag(path, selection)
            bag.close()
            read_questions(questions, tuple(topic.camera for topic in bag.topics))
        except (VlmReuseError, OSError) as error:
            failed[name] = str(error)
            continue
        questions = questions and questions.absolute()
        folder = args.out / 'bags' / name
        todo.append(
            Job(path.absolute(), name, folder, arms, selection, questions, config, args.window, args.order_seed)
        )
        seconds += max(0.0, min(bag.seconds - args.start, args.duration))
    return todo, failed, seconds


def questions_files(args: argparse.Namespace) -> list[Path | None]:
    """Return a questions file for each bag; None: the general set. Raises ConfigError for a wrong number of them."""
    files = args.questions
    if len(files) not in (0, 1, len(args.bags)):
        raise ConfigError(
            f'There are {len(files)} questions files for {len(args.bags)} bags; expected none, '
            'one for all, or one for each.'
        )
    if len(files) == len(args.bags):
        return files
    return (files or [None]) * len(args.bags)


def make_folder(path: Path) -> None:
    """Make the folder before the work of minutes. Raises ConfigError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--out is '{path}', which cannot be a folder: {error.strerror}. Name another one."
        ) from error


def names_of(paths: list[Path]) -> list[str]:
    """Return a name for each bag: its folder's or file's, with a number where two have the same."""
    names: list[str] = []
    for path in paths:
        plain = bag_name(path)
        name = plain
        number = 2
        while name in names:
            name = f'{plain}-{number}'
            number += 1
        names.append(name)
    return names


def _arms(text: str) -> tuple[str, ...]:
    wanted = list(ARMS) if text == 'all' else [name.strip() for name in text.split(',') if name.strip()]
    if unknown := [name for name in wanted if name not in ARMS]:
        raise ConfigError(f'There is no arm {", ".join(unknown)}; expected all, or some of {", ".join(ARMS)}.')
    return tuple(name for name in ARMS if name in wanted)


def config_of(args: argparse.Namespace) -> Config:
    """Return the configuration of --model and --param. Raises ConfigError."""
    values = {'model': args.model}
    for text in args.param:
        name, equals, value = text.partition('=')
        if not equals:
            raise ConfigError(f"--param is '{text}'; expected NAME=VALUE, such as history_frames=4.")
        is_text = any(each.name == name and isinstance(each.default, str) for each in fields(Config))
        try:
            values[name] = value if is_text else yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:
            raise ConfigError(
                f"--param is '{text}', whose value cannot be read: {one_line(error)} Expected a number, true or false."
            ) from error
    if 'refresh_policy' in values:
        raise ConfigError('refresh_policy is what these programs compare: it is not set, but measured.')
    return Config().with_values(**values)


def selection_of(args: argparse.Namespace) -> Selection:
    """Return which part of the bags is meant. Raises ConfigError for a number out of range."""
    least = {'start': 0, 'duration': 1e-9, 'rate_limit': 0, 'window': 1e-3, 'order_seed': 0, 'jobs': 1, 'every': 1e-3}
    for name, low in least.items():
        value = getattr(args, name, low)  # not every program has all of them
        if math.isnan(value) or value < low:
            expected = f'at least {low}' if low in (0, 1) else 'more than 0'
            raise ConfigError(f'--{name.replace("_", "-")} is {value:g}; expected {expected}.')
    most = config_of(args).max_image_pixels
    return Selection(tuple(args.topic), args.start, args.duration, args.rate_limit, most)
