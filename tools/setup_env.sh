#!/bin/bash
# Set up this checkout: `setup_env.sh` for running and testing, `setup_env.sh train` for training the embedded model.
# ROS=kilted (default) or ROS=jazzy says with which ROS 2; PYTHON=/path/to/python with which Python, 3.11 or 3.12.
#
# Exit codes: 0 it is set up; 1 a step failed; 2 wrong usage; 3 no network; 4 too little space; 130 interrupted.
#
# Every step has a stamp file that names its inputs, and is skipped when the stamp matches. It removes the stamp first and
# writes it at the end, so an interrupted step is repeated.
set -Eeuo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."
root=$PWD

# Kilted's folders have no suffix: .venv, build, install. Jazzy's are .venv-jazzy, build-jazzy, install-jazzy.
distribution=${ROS:-kilted}
case $distribution in
  kilted) suffix='' ;;
  *) suffix=-$distribution ;;
esac
lock=requirements$suffix.txt environment=.venv$suffix build=build$suffix install=install$suffix

# Measured with Python 3.11 and 3.12: an environment is 1.5 GB, and pip needs room for the wheels beside it.
WHEELS_MB=350 NEED_MB=2000 NEED_TRAIN_MB=3500
FAILED=1 USAGE=2 NO_NETWORK=3 NO_SPACE=4

say() { echo "setup: $*"; }
# fail MESSAGE [EXIT CODE]
fail() {
  trap - ERR
  say "$1" >&2
  exit "${2:-$FAILED}"
}
[ "$distribution" = kilted ] || [ -e "$lock" ] || fail "unknown ROS '$distribution'; expected kilted or jazzy" $USAGE
trap 'say "failed; run the same command again." >&2' ERR
trap 'exit 130' INT TERM

# A path in a script's first line or in LD_PRELOAD must not contain spaces.
case $root in *' '*) fail "this folder's path contains a space, which ROS and the loader do not support; move the folder: $root" ;; esac

# A second set-up in the same folder waits for the first one.
exec 9<"$root"
flock -n 9 || { say "waiting for another set-up in this folder."; flock 9; }

# find_python: print the path of a Python that the wheels are made for.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11 /usr/bin/python3.12 /usr/bin/python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
      "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
      return
    fi
  done
  [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON does not run, or is not Python 3.11 or 3.12." $USAGE
  fail 'Neither Python 3.11 nor 3.12 was found, and the wheels of ROS are made for these. Install one, or run: PYTHON=/path/to/python3.12 make setup'
}

# need_compiler: stop before anything is fetched when the interfaces could not be compiled in the end.
need_compiler() {
  [ ! -e "$install/complete.stamp" ] || return 0
  command -v ${CXX:-c++ g++ clang++} >/dev/null ||
    fail 'there is no C++ compiler, which builds the ROS interfaces; on Debian and Ubuntu: apt-get install g++'
}

# need_space MEGABYTES: stop when the file systems of this folder and of temporary files have less than that.
need_space() {
  local folder free
  for folder in "$root" "${TMPDIR:-/tmp}"; do
    free=$(df -Pm "$folder" 2>/dev/null | awk 'NR == 2 { print $4 }')
    [ "$folder" = "$root" ] || set -- $WHEELS_MB
    [ "${free:-$1}" -ge "$1" ] || fail "no space: $folder has $free MB left, and this step needs $1 MB. Nothing was changed." $NO_SPACE
  done
}

# pip_progress ENVIRONMENT COUNT: of all that pip says, show how far it is. While it unpacks it says nothing.
pip_progress() {
  local line seen=0 unpacking='' status
  while true; do
    status=0
    IFS= read -r -t 15 line || status=$?
    if ((status > 128)); then
      [ -z "$unpacking" ] || say "  $(find "$1"/lib/python*/site-packages -maxdepth 1 -name "*.dist-info" -not -name "pip-*" | wc -l) of $2 wheels unpacked"
      continue
    fi
    ((status == 0)) || return 0
    case $line in
      'Collecting '*) ((++seen % 25)) || say "  $seen of $2 wheels fetched" ;;
      'Installing collected'*) unpacking=yes && say '  all wheels fetched; unpacking them' ;;
    esac
  done
}

# pip_install ENVIRONMENT COUNT ARGUMENTS...: install, with a line for every 25 wheels. All that pip says is in
# ENVIRONMENT/pip.log; the two causes that a user can do something about are told in a sentence.
pip_install() {
  local venv=$1 count=$2 log=$1/pip.log cause
  shift 2
  if PYTHONUNBUFFERED=1 "$venv/bin/python" -m pip install --progress-bar off --no-input --disable-pip-version-check \
    --retries 2 "$@" 2>&1 | tee "$log" | pip_progress "$venv" "$count"; then
    return 0
  fi
  cause=$(grep -m 1 '^ERROR: ' "$log" || tail -n 1 "$log")
  if grep -q 'No space left on device\|Disk quota exceeded' "$log"; then
    fail "no space: the disk was full while the wheels were unpacked. Free $NEED_MB MB, then run the same command again." $NO_SPACE
  elif grep -q 'NewConnectionError\|NameResolutionError\|ConnectTimeout\|ReadTimeout\|ConnectionResetError\|ProxyError\|Network is unreachable' "$log"; then
    fail "no network: pip cannot reach its package index. Connect this machine, or give pip a proxy or mirror, then run the same command again." $NO_NETWORK
  fi
  fail "pip failed: $cause (all it said: $log)"
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

# install_wheels ENVIRONMENT LOCK MEGABYTES [PIP OPTIONS]: make an environment with the wheels of the lock file.
install_wheels() {
  local venv=$1 lock=$2 need=$3 python stamp made_from count start=$SECONDS
  shift 3
  stamp=$venv/wheels.stamp
  count=$(grep -c == "$lock")
  # The stamp contains the path, because files of the environment do. A changed environment is made again, not updated:
  # updating wheels would leave old files behind. PYTHON, if given, must be the Python it was made with.
  made_from="$root $(sha256sum <"$lock")"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$made_from" ] && "$venv/bin/python" -c ''; then
    [ -n "${PYTHON:-}" ] || return 0
    [ "$("$venv/bin/python" -V)" != "$("$PYTHON" -V)" ] || return 0
  fi
  python=$(find_python) || exit $?
  rm -rf "$stamp" "$venv"
  need_space "$need"
  say "step 1: $("$python" -V) with $count wheels from $lock into $venv." \
    "About $WHEELS_MB MB to fetch and $need MB of disk; one to four minutes."
  "$python" -m venv "$venv" >/dev/null 2>&1 || make_venv_without_ensurepip "$python" "$venv"
  pip_install "$venv" "$count" "$@" -r "$lock"
  [ "$venv" != "$environment" ] || point_cmake_files_here
  echo "$made_from" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "step 1 is done after $((SECONDS - start)) s: $venv, $(du -sm "$venv" | cut -f 1) MB"
}

# On Debian, ensurepip is in a separate package, python3-venv.
make_venv_without_ensurepip() {
  local python=$1 venv=$2
  { "$python" -m venv --clear --without-pip "$venv" && unpack_debian "$venv/debian-pip" python3-pip-whl; } ||
    fail 'this Python cannot make a virtual environment with pip; on Debian: apt-get install python3-venv'
  set -- "$venv"/debian-pip/usr/share/python-wheels/pip-*.whl
  "$venv/bin/python" "$1/pip" install -qq --no-index "$1"
}

# The CMake files of the ROS wheels contain header paths of the machine that built them: replace these paths. And add what
# Jazzy's lack.
point_cmake_files_here() {
  local headers version
  headers=$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  version=${headers##*python}
  if [ ! -e "$headers/Python.h" ]; then
    say "  fetching the headers of Python $version (Debian package libpython$version-dev)"
    unpack_debian "$environment/debian-headers" "libpython$version-dev" ||
      fail "$headers/Python.h is missing; on Debian and Ubuntu: apt-get install python$version-dev"
    headers=$root/$environment/include/python$version
    mkdir -p "$headers"
    cp -r "$environment/debian-headers/usr/include/python$version/." "$headers"
    cp "$environment"/debian-headers/usr/include/*-linux-gnu/"python$version/pyconfig.h" "$headers"
  fi
  "$environment/bin/python" - "$headers" <<'END'
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

# Jazzy's generators require ament_cmake_ros, of which there is no wheel. For a build without tests it is this option.
config = pathlib.Path(sys.prefix, 'share', 'ament_cmake_ros', 'cmake', 'ament_cmake_rosConfig.cmake')
if not config.exists():
    config.parent.mkdir(parents=True)
    config.write_text('option(BUILD_SHARED_LIBS "Build shared libraries" ON)\n')
END
}

# Fetch Debian's OpenBLAS and its Fortran runtime. env.sh preloads them in place of MLX's own BLAS.
unpack_blas() {
  [ "$(uname -sm)" = 'Linux x86_64' ] || return 0
  [ ! -e $environment/blas ] && [ ! -e $environment/no-blas ] || return 0
  [ ! -e /usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3 ] || return 0
  say 'step 2: a fast BLAS for MLX (Debian package libopenblas0-pthread, 7 MB)'
  local libraries=$environment/debian-blas/usr/lib/x86_64-linux-gnu
  if unpack_debian $environment/debian-blas libopenblas0-pthread libgfortran5 libquadmath0; then
    rm -rf $environment/blas.new
    mkdir $environment/blas.new
    cp -L $libraries/lib{gfortran.so.5,quadmath.so.0} $libraries/openblas-pthread/lib{blas.so.3,openblas.so.0} \
      $environment/blas.new
    mv $environment/blas.new $environment/blas
    rm -rf $environment/debian-blas
  else
    mv $environment/debian-blas.log $environment/no-blas
    say 'no fast BLAS: everything works, but float32 on MLX is about 30 times slower.' \
      "See $environment/no-blas for the reason. Remove that file to try again, or install libopenblas0-pthread."
  fi
}

# Print the inputs of the build. colcon links Python, launch, config and example files, so only their names count; it copies
# or compiles the others.
build_inputs() {
  find . -maxdepth 2 '(' -path './launch/*.launch.py' -o -path './config/*' -o -path './examples/*' ')' | LC_ALL=C sort
  find vlm_reuse_interfaces resource package.xml setup.py setup.cfg -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
}

# Of all that colcon says, show its own lines, how far the compiler is, and what a package that failed has said.
build_progress() {
  local line percent shown=0 block=
  while IFS= read -r line; do
    case $line in
      '['*%]*)
        percent=${line%%%*} percent=${percent//[^0-9]/}
        ((percent < shown + 20)) || { shown=$((percent - percent % 20)); say "  compiled $shown %"; }
        ;;
      '--- '*) block=yes ;;&
      Starting* | Finished* | Failed* | Aborted* | Summary* | '  '[0-9]*' package'*) echo "$line" ;;
      *) [ -z "$block" ] || echo "$line" ;;
    esac
    [ "$line" != --- ] || block=
  done
}

build_packages() {
  local stamp=$install/complete.stamp made_from start=$SECONDS headers
  made_from=$(cat "$environment/wheels.stamp" && build_inputs | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" != "$made_from" ] || return 0
  say "step 3: building vlm_reuse_interfaces and vlm_reuse_node into $install; about a minute the first time"
  # CMake caches paths, and a killed compiler can leave an incomplete file with a new time. So remove builds from another
  # folder, with other wheels, or that were interrupted.
  [ "$(head -n 1 "$stamp" 2>/dev/null)" = "$(cat "$environment/wheels.stamp")" ] || rm -rf "$build" "$install"
  # colcon links installed files from build/, and fails on links to deleted files.
  rm -rf "$stamp" {"$build","$install"}/vlm_reuse_node
  local cmake_options=(-DBUILD_TESTING=OFF -DPython3_EXECUTABLE="$root/$environment/bin/python")
  for headers in "$root/$environment"/include/python3.*/Python.h; do
    [ ! -e "$headers" ] || cmake_options+=(-DPython3_INCLUDE_DIR="${headers%/Python.h}")
  done
  env -u PYTHONPATH -u COLCON_PREFIX_PATH -u LD_PRELOAD PATH="$root/$environment/bin:$PATH" \
    AMENT_PREFIX_PATH="$root/$environment" CMAKE_PREFIX_PATH="$root/$environment" PYTHONUNBUFFERED=1 \
    colcon --log-level error build --symlink-install --base-paths . vlm_reuse_interfaces \
    --build-base "$build" --install-base "$install" --event-handlers console_direct+ status- \
    --cmake-args "${cmake_options[@]}" 2>&1 | build_progress ||
    fail 'the build failed; the compiler says why above, and log/latest_build has all of it'
  echo "$made_from" >"$stamp.new"
  mv "$stamp.new" "$stamp"
  say "step 3 is done after $((SECONDS - start)) s"
}

[ $# -le 1 ] || fail 'expected at most one argument: train' $USAGE
case ${1:-} in
  '')
    need_compiler
    install_wheels "$environment" "$lock" $NEED_MB --no-deps
    unpack_blas
    build_packages
    ;;
  train) install_wheels .venv-train requirements-train.txt $NEED_TRAIN_MB ;;
  *) fail "unknown argument '$1'; expected none, or: train" $USAGE ;;
esac
