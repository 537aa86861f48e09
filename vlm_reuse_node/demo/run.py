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

"""`make demo`: a camera, the node and a planner as three processes, and one page about the results."""

import argparse
import sys
from pathlib import Path

from vlm_reuse_node.demo.dds import use_own_domain
from vlm_reuse_node.demo.interruption import Interruption, InterruptionError
from vlm_reuse_node.demo.live import record_bag, run_live
from vlm_reuse_node.demo.outputs import VIDEO, write_outputs
from vlm_reuse_node.demo.sidecar import Sidecar
from vlm_reuse_node.demo.table import closing_lines
from vlm_reuse_node.errors import VlmReuseError
from vlm_reuse_node.plain_text import print_error
from vlm_reuse_node.replay.options import add_out_options, keep_results, make_folder
from vlm_reuse_node.terminal import Parser

SHORTEST_S = 3.0
FASTEST_HZ = 1000.0
EXIT_UNANSWERED, EXIT_FAILED, EXIT_INTERRUPTED = 1, 1, 130


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        description=__doc__.split('\n')[0],
        epilog='Exit codes: 0 every question was answered; 1 one was not, or the demo failed; 2 wrong usage; '
        '130 interrupted.',
    )
    add_out_options(parser, Path('out/demo'))
    parser.add_argument('--model', default='tabletop', help="the node's model: tabletop, a directory or a hub name")
    parser.add_argument('--seconds', type=float, default=30.0, help='length of the bag')
    parser.add_argument('--rate', type=float, default=10.0, help='pictures a second')
    parser.add_argument('--seed', type=int, default=0, help='of the scene and its questions')
    parser.add_argument('--transport', choices=('raw', 'compressed'), default='raw', help='how pictures travel')
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the demo. Returns 0 only when every question was answered."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not SHORTEST_S <= args.seconds < float('inf') or not 0 < args.rate <= FASTEST_HZ or args.seed < 0:
        parser.error(
            f'--seconds is {args.seconds:g}, --rate {args.rate:g} and --seed {args.seed}; expected at least '
            f'{SHORTEST_S:g} s, above 0 and at most {FASTEST_HZ:g} pictures a second, and a seed from 0 on.'
        )
    try:
        with Interruption() as interruption:
            return _demo(args, interruption)
    except (VlmReuseError, OSError) as error:
        print_error('demo', error)
        return EXIT_INTERRUPTED if isinstance(error, InterruptionError) else EXIT_FAILED


def _demo(args: argparse.Namespace, interruption: Interruption) -> int:
    # 1. What the camera will see, and what will be asked.
    keep_results(args, 'summary.json')
    make_folder(args.out)
    print(f'Writing a bag of {args.seconds:g} s at {args.rate:g} Hz.', flush=True)
    sidecar = record_bag(args, interruption.check)
    # 2. The node, fed by the player, asked by the planner.
    use_own_domain()
    print(f"Starting the node with the model '{args.model}'.", flush=True)
    summary, recorder = run_live(args, sidecar, interruption.check)
    # 3. What came of it.
    print('', *closing_lines(summary), sep='\n')
    write_outputs(args.out, summary, recorder, _settings(args, sidecar))
    print(f'\nWritten to {args.out}: report.html, {VIDEO}, overlay.png, summary.json, node.log and the bag.')
    return 0 if summary.answered == summary.questions else EXIT_UNANSWERED


def _settings(args: argparse.Namespace, sidecar: Sidecar) -> list[tuple[str, str]]:
    return [
        ('model', args.model),
        ('scene', f'tabletop, seed {args.seed}'),
        ('camera', f'{sidecar.topic}, 640 x 480, {args.rate:g} Hz, {args.seconds:g} s, played over DDS'),
        ('questions', f'{len(sidecar.questions)}, each asked warm, then cold-dense on the same picture'),
    ]


if __name__ == '__main__':
    sys.exit(main())
