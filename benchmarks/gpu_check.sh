#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Everything that needs a CUDA device, in one command and under nine minutes, without network: builds the package, runs
# the whole test suite, runs the kernels under compute-sanitizer, and measures them.
#
#   benchmarks/gpu_check.sh
#
# Logs and results go to $OUT (default build/gpu_check). Nothing stops it early; it ends non-zero when anything failed.
# Needs nvcc, cmake, ninja, torch with CUDA, pybind11, scikit-build-core and pytest; what is missing may lie in .whl/ as
# wheels. OCC_GPU_ARCH (default 9.0) is the architecture built for, OCC_GPU_LIMIT the seconds for everything.
set -uo pipefail
cd "$(dirname "$0")/.."

export OUT=${OUT:-$PWD/build/gpu_check} PYTHON=${PYTHON:-python3}
export WORK=${WORK:-$(mktemp -d)}
export SITE=$WORK/site
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 OMP_NUM_THREADS=2 PYTHONPATH=$SITE
export PATH=$PATH:/usr/local/cuda/bin

# The steps. Each runs as a process of its own (this script with the step's name), under a time limit.

step_wheels() {
  if ! compgen -G '.whl/*.whl' >/dev/null; then
    echo "none in .whl"
    return
  fi
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$SITE" .whl/*.whl && ls "$SITE"
}

step_build() {
  nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem --format=csv,noheader
  export OCC_CUDA=ON TORCH_CUDA_ARCH_LIST=${OCC_GPU_ARCH:-9.0} MAX_JOBS=${MAX_JOBS:-$(nproc)}
  local status=0
  if ! "$PYTHON" -m pip install -v --no-index --no-build-isolation --no-deps --upgrade --target "$SITE" .; then
    echo "pip failed. Building with CMake instead, so that the rest can be judged."
    status=1
    cmake -S . -B "$WORK/build" -G Ninja -DSKBUILD_PROJECT_VERSION_FULL=0 -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
      -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" && cmake --build "$WORK/build" &&
      cp -r occkernels python/occnets "$SITE/" && cp "$WORK"/build/_C*.so "$SITE/occkernels/"
  fi
  "$PYTHON" -m occkernels.info || status=1
  "$PYTHON" -c 'import occkernels; assert occkernels.has_cuda(), "no CUDA code in the build, or torch sees no device"' ||
    status=1
  return $status
}

step_tests() {
  local parallel=()
  "$PYTHON" -c 'import xdist' 2>/dev/null && parallel=(-n $(($(nproc) / 2)))
  "$PYTHON" -m pytest tests --ignore=tests/cuda_host -q -rs -p no:cacheprovider ${parallel[@]+"${parallel[@]}"}
}

step_cuda_host() { "$PYTHON" -m pytest tests/cuda_host -q -rs -p no:cacheprovider; }

step_sanitizer() { # TOOL [OPTIONS]
  # Without torch's caching allocator every tensor is an allocation of its own, with bounds. Tracing and numerical
  # differentiation launch the same kernels thousands of times; a sanitizer needs to see each once.
  local ours=()
  compute-sanitizer --help | grep -q -- --kernel-regex && ours=(--kernel-regex kns=occ)
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$@" --error-exitcode 9 ${ours[@]+"${ours[@]}"} \
    "$PYTHON" -m pytest tests/occkernels -m cuda -k "not opcheck and not compile and not gradcheck and not gradgrad" \
    -q -p no:cacheprovider
}

step_benchmarks() { "$PYTHON" benchmarks/gpu.py --json "$OUT/gpu.json"; }

if [ $# -gt 0 ]; then
  "step_$1" "${@:2}"
  exit
fi

# The conductor.

LIMIT=${OCC_GPU_LIMIT:-530}
mkdir -p "$OUT" "$SITE"
: >"$OUT/summary.txt"

say() { echo "[$SECONDS s] $*" | tee -a "$OUT/summary.txt"; }

# stage NAME SECONDS STEP ARGUMENTS...: runs a step for at most that long and at most what is left of LIMIT.
stage() {
  local name=$1 most=$2 left=$((LIMIT - SECONDS)) began=$SECONDS status
  shift 2
  ((most < left)) || most=$left
  if ((most < 5)); then
    say "FAILED $name: no time left"
    return 1
  fi
  timeout -k 5 "$most" bash benchmarks/gpu_check.sh "$@" >"$OUT/$name.log" 2>&1
  status=$?
  if ((status == 0)); then
    say "ok     $name, $((SECONDS - began)) s: $(grep -v '^ *$' "$OUT/$name.log" | tail -n 1 | cut -c 1-200)"
  else
    say "FAILED $name, status $status, $((SECONDS - began)) s of $most; the end of $name.log:"
    tail -n 25 "$OUT/$name.log" | cut -c 1-300 | tee -a "$OUT/summary.txt"
  fi
  return $status
}

failed=0
stage wheels 40 wheels || failed=1
stage build 180 build || failed=1

# Independent of one another, so together; only the measurements get the machine to themselves.
running=()
stage tests 250 tests & running+=($!)
stage cuda_host 250 cuda_host & running+=($!)
stage memcheck 250 sanitizer memcheck --padding 64 & running+=($!)
stage racecheck 250 sanitizer racecheck & running+=($!)
for process in "${running[@]}"; do wait "$process" || failed=1; done

stage benchmarks 150 benchmarks || failed=1
[ ! -f "$OUT/benchmarks.log" ] || cat "$OUT/benchmarks.log"
((failed)) && say "something FAILED" || say "everything passed"
rm -rf "$WORK"
exit $failed
