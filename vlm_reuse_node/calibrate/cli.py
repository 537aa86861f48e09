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

"""`calibrate`: find out on recordings how far a model may be patched, and write what `refresh_policy: auto` reads."""

import argparse
import json
import logging
import sys
from pathlib import Path

from vlm_reuse_node.calibrate.stretches import Recording
from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.plain_text import log_to_stderr, print_error, print_rows
from vlm_reuse_node.replay.bag import Bag
from vlm_reuse_node.replay.options import (
    add_out_options,
    add_recording_options,
    config_of,
    keep_results,
    make_folder,
    names_of,
    questions_files,
    selection_of,
)
from vlm_reuse_node.replay.questions import read_questions
from vlm_reuse_node.replay.stop_request import StopRequest
from vlm_reuse_node.session.turn import Halt
from vlm_reuse_node.terminal import Parser, progress

NAME = 'calibrate'
PAGE = 'calibration.html'


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog=NAME,
        description='Find out on recordings how far patched states of a model may be used: the limits are chosen on '
        'every other stretch of a recording, and judged on the rest.',
        epilog='Exit codes: 0 patches may be used; 3 every changed picture is computed whole; 4 there was too little '
        'to tell; 5 the model cannot be patched; 1 failed; 2 wrong usage; 130 interrupted.',
    )
    add_recording_options(parser)
    add_out_options(parser, Path('out/calibrate'))
    parser.add_argument(
        '--every', type=float, default=1.0, metavar='S', help='seconds between the pictures that are asked about'
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Calibrate. Returns an exit code, see `verdict.Exit`."""
    args = build_parser().parse_intermixed_args(argv)
    log_to_stderr(logging.ERROR)
    try:
        return _calibrate(args)
    except ConfigError as error:
        print_error(NAME, error)
        return 2
    except (VlmReuseError, OSError) as error:
        print_error(NAME, error)
        return 1
    except (Halt, KeyboardInterrupt):
        print_error(NAME, 'Stopped; nothing was written.')
        return 130


def _calibrate(args: argparse.Namespace) -> int:
    config = config_of(args)
    keep_results(args, PAGE)
    recordings, seconds = _recordings(args)
    make_folder(args.out)
    # Imported here because they load MLX, which --help and a wrong option need not wait for.
    from vlm_reuse_node.calibrate.measure import Measured, Measurement
    from vlm_reuse_node.calibrate.page import write_page
    from vlm_reuse_node.calibrate.verdict import Exit, exit_code, headline, verdicts
    from vlm_reuse_node.model.vlm import Vlm
    from vlm_reuse_node.replay.model_thread import run_with_model
    from vlm_reuse_node.session import calibration

    bar = progress(round(2 * seconds, 1), NAME, 's')
    with StopRequest('Stopping; nothing is written (again: at once).') as stop, bar:

        def measure(vlm: Vlm) -> Measured | None:
            if not vlm.family.encodes_cells:
                return None
            return Measurement(vlm, config, recordings, args.every, bar.update, lambda: stop.is_set).run()

        measured = run_with_model(config, measure)
    if measured is None:
        print_error(
            NAME,
            f"The model '{config.model}' cannot compute single cells of a picture, so there is nothing to "
            'calibrate: refresh_policy auto computes every changed picture whole.',
        )
        return Exit.CANNOT_PATCH
    found = verdicts(measured, config.max_drift)
    path = args.out / calibration.NAME
    path.write_text(json.dumps(measured.calibration.as_json(), indent=1) + '\n', encoding='utf-8')
    (args.out / 'params.yaml').write_text(_parameters(config, path), encoding='utf-8')
    write_page(measured, found, config, args.out / PAGE)
    failures = measured.failures.most_common(3)
    print_rows(
        [
            headline(found),
            *(f'  {verdict.name}: {verdict.sentence}' for verdict in found),
            *(f'  {count} answers could not be compared: {message}' for message, count in failures),
            f'Written to {args.out}: {path.name}, params.yaml, {PAGE}.',
        ]
    )
    return exit_code(found)


def _recordings(args: argparse.Namespace) -> tuple[list[Recording], float]:
    """The recordings, and the seconds there are to read. Raises ConfigError, BagError or QuestionsError."""
    selection = selection_of(args)
    recordings, seconds = [], 0.0
    for path, name, questions in zip(args.bags, names_of(args.bags), questions_files(args), strict=True):
        bag = Bag(path, selection)
        bag.close()
        cameras = tuple(topic.camera for topic in bag.topics)
        entries = read_questions(questions, cameras)
        recordings.append(Recording(path, name, selection, cameras, entries, are_general=questions is None))
        seconds += max(0.0, min(bag.seconds - args.start, args.duration))
    return recordings, seconds


def _parameters(config: Config, path: Path) -> str:
    """The node's parameter file."""
    default, folder = Config(), Path(config.model).expanduser()
    values = {name: value for name, value in vars(config).items() if value != getattr(default, name)}
    values |= {'model': str(folder.resolve()) if folder.is_dir() else config.model}
    values |= {'refresh_policy': 'auto', 'calibration': str(path.resolve())}
    lines = [f'    {name}: {json.dumps(value)}' for name, value in values.items()]
    return '\n'.join(['/**:', '  ros__parameters:', *lines, ''])


if __name__ == '__main__':
    sys.exit(main())
