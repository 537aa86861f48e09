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

"""`ros2 run vlm_reuse_node ask "is the door open?" --choices yes no`: ask, and read the answer."""

import argparse
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

from vlm_reuse_node.ask.answer_lines import answer_lines, as_json
from vlm_reuse_node.config import Config
from vlm_reuse_node.errors import ConfigError, VlmReuseError
from vlm_reuse_node.plain_text import log_to_stderr, print_error
from vlm_reuse_node.session.answer import Answer, Status
from vlm_reuse_node.session.question import Question
from vlm_reuse_node.terminal import Parser

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog='ask',
        description='Ask one question: a running node about its camera, or, without ROS, a model about a picture or a '
        'recording.',
        epilog='Exit codes: 0 there is an answer; 1 there is none, and why is said; 2 wrong usage.',
    )
    parser.add_argument('question', help='for example "is the door open?"')
    parser.add_argument('--choices', nargs='+', default=[], metavar='TEXT', help='the answer is one of these')
    parser.add_argument('--schema', type=Path, metavar='FILE', help='the answer is JSON that follows this JSON schema')
    parser.add_argument(
        '--max-tokens', type=int, default=0, metavar='N', help="most tokens of a text; default: 64, or the node's"
    )
    parser.add_argument('--json', action='store_true', help='print every field of the answer as JSON')
    live = parser.add_argument_group('a running node')
    live.add_argument('--node', default='/vlm_reuse_node', help='its name; default: /vlm_reuse_node')
    live.add_argument('--camera', default='', help="default: the node's first one")
    live.add_argument('--max-age', type=float, default=0.0, metavar='S', help="default: the node's max_age_s")
    live.add_argument('--max-lag', type=float, default=0.0, metavar='S', help="default: the node's max_lag_s")
    live.add_argument('--timeout', type=float, default=0.0, metavar='S', help="default: the node's timeout_s")
    alone = parser.add_argument_group('without ROS')
    alone.add_argument('--picture', type=Path, metavar='FILE', help='a PNG, JPEG or WebP file')
    alone.add_argument('--recording', type=Path, metavar='BAG', help='a ROS 2 bag')
    alone.add_argument('--topic', default='', help='of the recording; default: the only one with pictures')
    alone.add_argument('--at', type=float, default=0.0, metavar='S', help='seconds from its first picture')
    alone.add_argument('--model', default=Config().model, help='tabletop, a model directory or a hub name')
    alone.add_argument('--visual-tokens', type=int, default=0, metavar='N', help='about the most of the picture')
    alone.add_argument('--thinking', action='store_true', help='let the model think before a text')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Ask, and print the answer."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.picture and args.recording:
        parser.error('--picture and --recording were both given; expected at most one of them.')
    log_to_stderr(logging.WARNING)
    try:
        answer = _ask(args)
    except ConfigError as error:
        return _say(error, EXIT_USAGE)
    except (VlmReuseError, OSError) as error:
        return _say(error, EXIT_FAILED)
    except KeyboardInterrupt:
        print_error('ask', 'Stopped.')
        return EXIT_INTERRUPTED
    if args.json:
        print(json.dumps(as_json(answer)))
    else:
        print('\n'.join(answer_lines(answer, tuple(args.choices))))
    return 0 if answer.status is Status.OK else EXIT_FAILED


def _ask(args: argparse.Namespace) -> Answer:
    question = Question(
        args.question,
        tuple(args.choices),
        args.schema.read_text(encoding='utf-8') if args.schema else '',
        max_tokens=args.max_tokens,
        max_age_s=args.max_age,
        max_lag_s=args.max_lag,
        timeout_s=args.timeout,
    )
    follow = sys.stderr if sys.stderr.isatty() and not args.json else None
    # Imported here: one needs MLX and the other ROS, and --help needs neither.
    if args.picture or args.recording:
        from vlm_reuse_node.ask.alone import ask as ask_alone
        from vlm_reuse_node.ask.alone import frame_of_file, frame_of_recording

        frame = frame_of_file(args.picture) if args.picture else frame_of_recording(args.recording, args.topic, args.at)
        config = Config(model=args.model, visual_tokens=args.visual_tokens, thinking=args.thinking)
        return ask_alone(config, frame, replace(question, max_age_s=0.0), follow)
    try:
        from vlm_reuse_node.ask.live import ask as ask_node
    except ImportError as error:
        raise ConfigError(
            f'ROS 2 is missing here ({error}); source its setup file, or give --picture or --recording.'
        ) from error
    return ask_node(args.node, args.camera, question, follow)


def _say(error: Exception, exit_code: int) -> int:
    print_error('ask', error)
    return exit_code


if __name__ == '__main__':
    sys.exit(main())
