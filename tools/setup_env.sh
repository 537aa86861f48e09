#!/bin/bash
# Set up this checkout: `setup_env.sh` for running and testing, `setup_env.sh train` for training the embedded model.
#
# Every step has a stamp file that names its inputs, and is skipped when the stamp matches. It removes the stamp first and
# writes it at the end, so an interrupted step is repeated.
set -Eeuo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
root=$PWD

say() { echo "setup: $*"; }
fail() {
  say "$*" >&2
  exit 1
}
trap 'say "failed; run the same command again." >&2' ERR
trap 'exit 130' INT TERM

# A path in a script's first line or in LD_PRELOAD must not contain spaces.
case $root in *' '*) fail "this folder's path contains a space, which ROS and the loader do not support; move the folder: $root" ;; esac

# A second set-up in the same folder waits for the first one.
exec 9<"$root"
flock -n 9 || { say "waiting for another set-up in this folder."; flock 9; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.11 python3 /usr/bin/python3.11; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
      "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
      return
    fi
  done
  fail "Python 3.11 was not found, and the wheels are pinned for it. Install it, or run: PYTHON=/path/to/python3.11 make setup"
}

# unpack_debian FOLDER PACKAGE...: unpack Debian packages into a folder, without root and without installing them.
unpack_debian() {
  local folder=$root/$1 deb
  shift
  # If the package lists are missing or too old, download new ones into a private folder.
  local private=(-o Dir::State::lists="$folder/lists" -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=)
  rm -rf "$folder"
  mkdir -p "$folder"/{lists,cache/archives}/partial
  (
    cd "$folder"
    timeout 60 apt-get download "$@" || {
      timeout 120 apt-get "${private[@]}" update && timeout 60 apt-get "${private[@]}" download "$@"
    }
  ) >"$folder.log" 2>&1 || return 1
  for deb in "$folder"/*.deb; do
    dpkg -x "$deb" "$folder" || return 1
  done
}

# install_wheels ENVIRONMENT LOCK [PIP OPTIONS]: make an environment with the wheels of the lock file.
install_wheels() {
  local venv=$1 lock=$2 python stamp made_from start=$SECONDS
  shift 2
  stamp=$venv/wheels.stamp
  # The stamp contains the path, because files of the environment do. A changed environment is made again, not updated:
  # updating wheels would leave old files behind.
  made_from="$root $(sha256sum <"$lock")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$made_from" ] && "$venv/bin/python" -c ''; then return 0; fi
  python=$(find_python)
  say "making $venv with $("$python" -V) from $lock ($(grep -c == "$lock") wheels, a minute or two)"
  rm -rf "$stamp" "$venv"
  "$python" -m venv "$venv" >/dev/null 2>&1 || make_venv_without_ensurepip "$python" "$venv"
  "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@" -r "$lock"
  [ "$venv" != .venv ] || point_cmake_files_here
  echo "$made_from" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "$venv is ready after $((SECONDS - start)) s"
}

# On Debian, ensurepip is in a separate package, python3-venv.
make_venv_without_ensurepip() {
  local python=$1 venv=$2
  { "$python" -m venv --clear --without-pip "$venv" && unpack_debian "$venv/debian-pip" python3-pip-whl; } ||
    fail 'this Python cannot make a virtual environment with pip; on Debian: apt-get install python3-venv'
  set -- "$venv"/debian-pip/usr/share/python-wheels/pip-*.whl
  "$venv/bin/python" "$1/pip" install -qq --no-index "$1"
}

# The CMake files of the ROS wheels contain header paths of the machine that built them. Replace these paths.
point_cmake_files_here() {
  local headers
  headers=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
  if [ ! -e "$headers/Python.h" ]; then
    unpack_debian .venv/debian-headers libpython3.11-dev ||
      fail "$headers/Python.h is missing; on Debian: apt-get install python3-dev"
    headers=$root/.venv/include/python3.11
    mkdir -p "$headers"
    cp -r .venv/debian-headers/usr/include/python3.11/. "$headers"
    cp .venv/debian-headers/usr/include/*-linux-gnu/python3.11/pyconfig.h "$headers"
  fi
  .venv/bin/python - "$headers" <<'END'
import pathlib
import re
import sys

import numpy

for path in pathlib.Path(sys.prefix, 'share').rglob('*.cmake'):
    text = path.read_text()
    here = re.sub(r'/opt/python/cp[^;"]*/numpy/_core/include', numpy.get_include(), text)
    here = re.sub(r'/opt/python/cp[^;"]*/include/python3\.\d+', sys.argv[1], here)
    if here != text:
        path.write_text(here)
END
}

# Fetch Debian's OpenBLAS and its Fortran runtime. env.sh preloads them in place of MLX's own BLAS.
unpack_blas() {
  [ "$(uname -sm)" = 'Linux x86_64' ] || return 0
  [ ! -e .venv/blas ] && [ ! -e .venv/no-blas ] || return 0
  [ ! -e /usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3 ] || return 0
  say 'fetching a fast BLAS for MLX (Debian package libopenblas0-pthread, 7 MB)'
  local libraries=.venv/debian-blas/usr/lib/x86_64-linux-gnu
  if unpack_debian .venv/debian-blas libopenblas0-pthread libgfortran5 libquadmath0; then
    rm -rf .venv/blas.new
    mkdir .venv/blas.new
    cp -L $libraries/lib{gfortran.so.5,quadmath.so.0} $libraries/openblas-pthread/lib{blas.so.3,openblas.so.0} \
      .venv/blas.new
    mv .venv/blas.new .venv/blas
    rm -rf .venv/debian-blas
  else
    mv .venv/debian-blas.log .venv/no-blas
    say 'no fast BLAS: everything works, but float32 on MLX is about 30 times slower.' \
      'See .venv/no-blas for the reason. Remove that file to try again, or install libopenblas0-pthread.'
  fi
}

# Print the inputs of the build. colcon links Python, launch, config and example files, so only their names count; it copies
# or compiles the others.
build_inputs() {
  find . -maxdepth 2 '(' -path './launch/*.launch.py' -o -path './config/*' -o -path './examples/*' ')' | LC_ALL=C sort
  find vlm_reuse_interfaces resource package.xml setup.py setup.cfg -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
}

build_packages() {
  local stamp=install/complete.stamp made_from
  made_from=$(cat .venv/wheels.stamp && build_inputs | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" != "$made_from" ] || return 0
  say 'building vlm_reuse_interfaces and vlm_reuse_node'
  # CMake caches paths, and a killed compiler can leave an incomplete file with a new time. So remove builds from another
  # folder, with other wheels, or that were interrupted.
  [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$(cat .venv/wheels.stamp)" ] || rm -rf build install
  # colcon links installed files from build/, and fails on links to deleted files.
  rm -rf "$stamp" {build,install}/vlm_reuse_node
  local cmake_options=(-DBUILD_TESTING=OFF -DPython3_EXECUTABLE="$root/.venv/bin/python")
  [ ! -e .venv/include/python3.11/Python.h ] || cmake_options+=(-DPython3_INCLUDE_DIR="$root/.venv/include/python3.11")
  env -u PYTHONPATH -u COLCON_PREFIX_PATH -u LD_PRELOAD PATH="$root/.venv/bin:$PATH" \
    AMENT_PREFIX_PATH="$root/.venv" CMAKE_PREFIX_PATH="$root/.venv" \
    colcon --log-level error build --symlink-install --base-paths . vlm_reuse_interfaces \
    --cmake-args "${cmake_options[@]}"
  echo "$made_from" >"$stamp.new"
  mv "$stamp.new" "$stamp"
}

case ${1:-} in
  '')
    install_wheels .venv requirements.txt --no-deps
    unpack_blas
    build_packages
    ;;
  train) install_wheels .venv-train requirements-train.txt ;;
  *) fail "unknown argument '$1'; expected none, or: train" ;;
esac
