# Source this file in bash to run programs of this checkout. It sets up the ROS 2 wheels, both packages, an offline model
# hub and a fast BLAS. It only changes this shell and its children. With ROS=jazzy before it, it takes what
# `make setup ROS=jazzy` has made.

_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

case ${ROS:-kilted} in kilted) _suffix='' ;; *) _suffix=-$ROS ;; esac
_venv=$_root/.venv$_suffix

# Sourced before, perhaps for another distribution, it has left entries of this checkout. Their libraries do not mix.
for _name in PATH PYTHONPATH LD_LIBRARY_PATH COLCON_PREFIX_PATH; do
  _rest=${!_name:-}: _kept=
  while [ -n "$_rest" ]; do
    _entry=${_rest%%:*} _rest=${_rest#*:}
    case $_entry in '' | "$_root"/.venv* | "$_root"/install* | "$_root"/build*) ;; *) _kept=$_kept:$_entry ;; esac
  done
  if [ -n "$_kept" ]; then export "$_name=${_kept#:}"; else unset "$_name"; fi # an empty entry is the current folder
done
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE # Python adds the libraries of the wheels again, once

export PATH="$_venv/bin:$PATH"
export AMENT_PREFIX_PATH=$_venv CMAKE_PREFIX_PATH=$_venv
if [ -e "$_root/install$_suffix/local_setup.bash" ]; then
  # colcon's script reads unset variables.
  case $- in *u*) set +u; . "$_root/install$_suffix/local_setup.bash"; set -u ;; *) . "$_root/install$_suffix/local_setup.bash" ;; esac
fi

# Only this machine, and a domain that other robots are unlikely to use. Values that are already set are kept.
export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
export ROS_DOMAIN_ID=${ROS_DOMAIN_ID:-87}
export ROS_LOG_DIR=${ROS_LOG_DIR:-$_root/log/ros}
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1}

# MLX's CPU wheel contains a reference BLAS, which is many times slower in float32. A library that is preloaded replaces
# it. The Fortran runtime is preloaded too, because the machine may have none.
for _blas in "$_venv/blas" /usr/lib/x86_64-linux-gnu/openblas-pthread; do
  case "${LD_PRELOAD:-}" in *libblas.so.3*) break ;; esac
  [ -e "$_blas/libblas.so.3" ] || continue
  for _library in libquadmath.so.0 libgfortran.so.5 libopenblas.so.0 libblas.so.3; do
    if [ -e "$_blas/$_library" ]; then
      export LD_PRELOAD=${LD_PRELOAD:+$LD_PRELOAD:}$_blas/$_library
    fi
  done
done
# BLAS threads spin while they wait. Half of the cores stay free for the processes of cameras and planners.
_cores=$(nproc 2>/dev/null || echo 2)
export OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-$((_cores > 1 ? _cores / 2 : 1))}
unset _root _suffix _venv _name _rest _kept _entry _blas _library _cores
