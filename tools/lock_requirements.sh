#!/bin/bash
# Write requirements.txt: the exact version of every wheel that a clean environment gets from requirements.in.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install -q --disable-pip-version-check -r requirements.in
# opencv-python needs X11 libraries, which a fresh machine does not have. The headless wheel is the same without windows.
# The ROS wheels also unpack distributions that are on no index (rclpy beside ros-rclpy). Only those installed by pip are
# listed.
"$scratch/venv/bin/python" - >"$scratch/lock" <<'END'
from importlib.metadata import distributions

print('# Made by `make lock` from requirements.in: do not edit. Linux x86-64, Python 3.11.')
wheels = {(wheel.name.lower(), wheel.version) for wheel in distributions()
          if (wheel.read_text('INSTALLER') or '').strip() == 'pip'}
for name, version in sorted(wheels):
    name = {'opencv-python': 'opencv-python-headless'}.get(name, name)
    if name != 'pip':
        print(f'{name}=={version}')
END
mv "$scratch/lock" requirements.txt
