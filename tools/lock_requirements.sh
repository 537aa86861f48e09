#!/bin/bash
# Write the lock file of a distribution (kilted or jazzy): the exact version of every wheel that a clean environment gets
# from requirements-DISTRIBUTION.in. Kilted's is made first: Jazzy's takes all but the wheels of ROS from it.
set -euo pipefail
cd "$(dirname "$0")/.."
distribution=${1:-kilted}
case $distribution in
  kilted) lock=requirements.txt command='make lock' ;;
  jazzy) lock=requirements-jazzy.txt command='make lock ROS=jazzy' ;;
  *) echo "lock: unknown distribution '$distribution'; expected kilted or jazzy" >&2; exit 2 ;;
esac
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

echo "lock: resolving requirements-$distribution.in in a new environment (some minutes)"
"${PYTHON:-python3}" -m venv "$scratch/venv"
touch "$scratch/constraints"
if [ "$distribution" = jazzy ]; then
  sed -n 's/^opencv-python-headless/opencv-python/; /^ros-/d; /==/p' requirements.txt >"$scratch/constraints"
fi
"$scratch/venv/bin/python" -m pip install -q --disable-pip-version-check -r "requirements-$distribution.in" \
  -c "$scratch/constraints"
# opencv-python needs X11 libraries, which a fresh machine does not have. The headless wheel is the same without windows.
# The ROS wheels also unpack distributions that are on no index (rclpy beside ros-rclpy). Only those installed by pip are
# listed.
"$scratch/venv/bin/python" - "$command" "$distribution" >"$scratch/lock" <<'END'
import sys
from importlib.metadata import distributions

print(f'# Made by `{sys.argv[1]}` from requirements-{sys.argv[2]}.in: do not edit. Linux x86-64, Python 3.11 and 3.12.')
wheels = {(wheel.name.lower(), wheel.version) for wheel in distributions()
          if (wheel.read_text('INSTALLER') or '').strip() == 'pip'}
for name, version in sorted(wheels):
    name = {'opencv-python': 'opencv-python-headless'}.get(name, name)
    if name != 'pip':
        print(f'{name}=={version}')
END
mv "$scratch/lock" "$lock"
