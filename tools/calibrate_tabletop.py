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

"""Calibrate the embedded model: bags of the demo's generator, the program `calibrate`, and its result into the model.

  python tools/calibrate_tabletop.py [--bags 12] [--seconds 60]

The seeds are those of no training and no test. Takes about as long as the bags are.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from vlm_reuse_node.calibrate.cli import main as calibrate
from vlm_reuse_node.demo.bag import write_bag
from vlm_reuse_node.demo.model_files import MODEL_DIRECTORY
from vlm_reuse_node.session.calibration import NAME

FIRST_SEED = 900_000


def main(argv: list[str] | None = None) -> int:
    """Write the bags, calibrate, and copy the calibration."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--bags', type=int, default=12)
    parser.add_argument('--seconds', type=float, default=60.0, help='length of each bag')
    parser.add_argument('--out', type=Path, default=Path('out/calibrate_tabletop'))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        bags = [Path(folder) / f'tabletop-{FIRST_SEED + number}' for number in range(args.bags)]
        questions = [
            write_bag(bag, seed=FIRST_SEED + number, seconds=args.seconds, rate_hz=5.0)
            for number, bag in enumerate(bags)
        ]
        given = [f'--questions={path}' for path in questions]
        code = calibrate([*map(str, bags), *given, '--out', str(args.out)])
    if code == 0:
        shutil.copyfile(args.out / NAME, MODEL_DIRECTORY / NAME)
        print(f'Copied to {MODEL_DIRECTORY / NAME}.')
    return code


if __name__ == '__main__':
    sys.exit(main())
