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

"""`ros2 run vlm_reuse_node check`: whether to trust this model on this machine, and what it costs here."""

import argparse
import json
import logging
import math
import os
import sys
import threading
from pathlib import Path

from tqdm import tqdm

from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.plain_text import log_to_stderr, print_error, print_rows
from vlm_reuse_node.replay.options import add_out_options, keep_results, make_folder
from vlm_reuse_node.terminal import Parser, progress

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
FEW, MANY, DEFAULT = 6, 120, 36
RESULT = 'check.json'


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='check',
        description='Check a model on this machine: warm answers equal cold ones, at which levels, in how many '
        'milliseconds.',
        epilog='Exit codes: 0 every claim held; 1 one failed, or it could not be checked; 2 wrong usage; '
        '130 interrupted.',
    )
    parser.add_argument('--model', default=Config().model, help='tabletop, a model directory or a hub name')
    parser.add_argument(
        '--visual-tokens', type=int, default=0, metavar='N', help="the node's visual_tokens; default: the model's own"
    )
    parser.add_argument('--recording', type=Path, metavar='BAG', help='take the pictures from a bag')
    parser.add_argument('--topic', default='', help='take them from this live topic; of a bag with several, this one')
    parser.add_argument('--timeout', type=float, default=10.0, metavar='S', help='longest wait for live pictures')
    parser.add_argument(
        '--questions',
        type=int,
        default=DEFAULT,
        metavar='N',
        help=f'about how many, {FEW} to {MANY}; default: {DEFAULT}',
    )
    add_out_options(parser, Path('out/check'))
    parser.add_argument('--json', action='store_true', help='print the JSON instead of a table')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Check. Returns 0 only when every claim that was made held."""
    args = build_parser().parse_args(argv)
    log_to_stderr(logging.WARNING)
    sessions = logging.getLogger('vlm_reuse_node.session')
    before = sessions.level
    sessions.setLevel(logging.CRITICAL)  # what fails in a session becomes a fault in the table
    try:
        return _check(args)
    except ConfigError as error:
        return _say(error, EXIT_USAGE)
    except (VlmReuseError, OSError) as error:
        return _say(error, EXIT_FAILED)
    except KeyboardInterrupt:
        print_error('check', 'Stopped; nothing was written.')
        if threading.active_count() > 1:  # a second Ctrl-C: the model still runs, and MLX would abort at the end
            os._exit(EXIT_INTERRUPTED)
        return EXIT_INTERRUPTED
    finally:
        sessions.setLevel(before)


def _check(args: argparse.Namespace) -> int:
    if not FEW <= args.questions <= MANY:
        raise ConfigError(f'--questions is {args.questions}; expected {FEW} to {MANY}.')
    if math.isnan(args.timeout) or args.timeout <= 0:
        raise ConfigError(f'--timeout is {args.timeout:g}; expected more than 0 seconds.')
    config = Config(model=args.model, visual_tokens=args.visual_tokens)
    keep_results(args, RESULT)
    make_folder(args.out)
    # Imported here because they load MLX, which --help and a wrong option need not wait for.
    from vlm_reuse_node.check import pictures, report, self_test, table

    if args.recording:
        found = pictures.recorded(args.recording, args.topic)
    elif args.topic:
        from vlm_reuse_node.check.live import live

        found = live(args.topic, args.timeout)
    else:
        found = pictures.generated()
    with progress(self_test.PARTS, 'check') as bar:

        def begin(part: str) -> None:
            bar.set_description(part)
            bar.update()

        def on_stop() -> None:
            tqdm.write('Stopping after this part (again: at once).', file=sys.stderr)

        result = self_test.run_check(config, found, args.questions, begin, on_stop)
    path = args.out / RESULT
    report.write(result, path)
    if args.json:
        print(json.dumps(report.to_json(result), allow_nan=False))
    else:
        print_rows([*table.table_lines(result), f'Written to {path}.'])
    return 0 if result.is_trusted else EXIT_FAILED


def _say(error: Exception, exit_code: int) -> int:
    print_error('check', error)
    return exit_code


if __name__ == '__main__':
    sys.exit(main())
