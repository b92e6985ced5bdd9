#!/usr/bin/env bash
# Everything that takes a GPU, offline, with the interpreter's own torch (2.11 or later, CUDA build).
#
#     bash benchmarks/gpu_check.sh [--dry-run] [--fresh] [PHASE ...]
#
#   build      what is missing here; then lpd_ext for this card (a build that was brought is taken)
#   test       pytest -m cuda
#   sanitize   memcheck, racecheck, synccheck and initcheck, each a phase of its own too
#   bench      every benchmark of the GPU, a JSON each
#   report     gpu_check.json and measurements.json of all that ran so far
#
# Without a PHASE: all of them. What passed with the same sources is not run again (--fresh: it is),
# and a phase that fails or takes over LPD_PHASE_SECONDS (290) stops none of the others. Results lie
# in LPD_GPU_FOLDER (out/gpu_check); the report and an archive of all are copied to $OUT where that
# is set. Without a .git, LPD_COMMIT names the commit. The exit status is 0 when every phase passed.
set -uo pipefail

script=$(realpath "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$script")")
folder=$(realpath -m "${LPD_GPU_FOLDER:-$root/out/gpu_check}")
python=${PYTHON:-python3}
limit=${LPD_PHASE_SECONDS:-290}
sanitizers=(memcheck racecheck synccheck initcheck)
phases=(build test "${sanitizers[@]}" bench report)
dry_run=0 fresh=0
cd "$root" || exit 2
export PYTHONPATH=$root PYTHONUNBUFFERED=1 PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$script"; }

# Runs a command, or only says it.
run() {
  echo "+ $*"
  [ "$dry_run" = 1 ] || "$@"
}

# One hash of all that a result depends on.
hash_sources() {
  find csrc lpd_ext tests benchmarks setup.py pyproject.toml -type f \
    ! -name '*.so' ! -name '*.pyc' ! -path 'benchmarks/results/*' -print0 |
    LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16
}

built_for_cuda() {
  "$python" -c 'from lpd_ext import _binary; exit(not _binary.host.build_info()["cuda"])' 2>/dev/null
}

# Without a GPU pytest would skip everything and be content.
need_gpu() { run "$python" benchmarks/gpu_report.py machine; }

phase_build() {
  need_gpu || return 1
  # A build that was brought along lies there before this script ever built one.
  if [ "$dry_run" = 0 ] && [ ! -e "$folder/built_here" ] && built_for_cuda; then
    echo "taking the CUDA build that lies in lpd_ext/"
    run "$python" -m lpd_ext.cli info
    return
  fi
  run touch "$folder/built_here"
  run rm -f lpd_ext/*.so
  local arch
  arch=$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())' \
    2>/dev/null) || arch="?"
  [ "$arch" != 9.0 ] || arch=9.0a
  # Source lines for the sanitizers and the profiler.
  run env LPD_CUDA=1 TORCH_CUDA_ARCH_LIST="$arch" NVCC_APPEND_FLAGS=-lineinfo \
    "$python" setup.py --quiet build_ext --inplace || return 1
  run "$python" -m lpd_ext.cli info
}

phase_test() {
  need_gpu || return 1
  run "$python" -m pytest tests -m cuda -q --continue-on-collection-errors \
    --junitxml="$folder/test.xml"
}

# Each tensor has an allocation of its own, so that memcheck knows its end.
phase_sanitizer() {
  run env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --error-exitcode 9 "$python" tests/cuda_sanitize.py
}

# A file is timed once; exit status 5 says that it has nothing for a GPU.
phase_bench() {
  local file stem status failed=0 timed=0
  need_gpu || return 1
  for file in benchmarks/bench_*.py; do
    stem=$(basename "$file" .py)
    if [ "$dry_run" = 0 ] && [ -e "$folder/$stem.$(hash_sources)" ]; then
      timed=1
      continue
    fi
    run "$python" -m pytest "$file" -m cuda -q --benchmark-json="$folder/$stem.json"
    status=$?
    case $status in
      0) timed=1 && run touch "$folder/$stem.$(hash_sources)" ;;
      5) echo "$stem: no benchmark of the GPU" ;;
      *) failed=1 ;;
    esac
  done
  [ "$timed" = 1 ] || echo "no benchmark is marked cuda"
  [ "$failed" = 0 ] && [ "$timed" = 1 ]
}

phase_report() {
  run "$python" benchmarks/gpu_report.py write "$folder"
}

# After every phase, so that what a borrowed machine ran is not lost with it.
hand_over() {
  local archive=$folder.tar.gz  # not inside what it is made of
  tar -C "$folder" --exclude=gpu_check.tar.gz --exclude=built_here -czf "$archive" .
  mv "$archive" "$folder/gpu_check.tar.gz"
  [ -z "${OUT:-}" ] ||
    find "$folder" -maxdepth 1 \( -name 'gpu_check.*' -o -name measurements.json \) \
      -exec cp -t "$OUT" {} +
}

run_inline() {
  case $1 in
    *check) phase_sanitizer "$1" ;;
    *) "phase_$1" ;;
  esac
}

# Runs a phase under its time limit and writes down how it went.
run_phase() {
  local phase=$1 record=$folder/$1.json begin=$SECONDS status result
  local sources
  sources=$(hash_sources)
  if [ "$fresh" = 0 ] && [ "$phase" != report ] && [ -e "$record" ] &&
    grep -q "\"passed\".*\"$sources\"" "$record"; then
    echo "== $phase: passed before"
    return 0
  fi
  echo "== $phase"
  [ "$fresh" = 0 ] || rm -f "$folder/$phase"_*  # stamps of single benchmarks
  # The log comes through a pipe of tee, whose own status is no answer.
  timeout --kill-after=10 "$limit" bash "$script" --inline "$phase" 2>&1 |
    tee "$folder/$phase.log"
  status=${PIPESTATUS[0]}
  case $status in
    0) result=passed ;;
    124 | 137) result="out of time" ;;
    *) result=failed ;;
  esac
  printf '{"phase": "%s", "result": "%s", "seconds": %d, "sources": "%s"}\n' \
    "$phase" "$result" $((SECONDS - begin)) "$sources" >"$record"
  echo "== $phase: $result"
  hand_over
  [ "$status" = 0 ]
}

wanted=()
while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) dry_run=1 ;;
    --fresh) fresh=1 ;;
    --inline) run_inline "$2" && exit 0 || exit 1 ;;  # a phase itself, under a limit
    -h | --help) usage && exit 0 ;;
    sanitize) wanted+=("${sanitizers[@]}") ;;
    *)
      if [[ " ${phases[*]} " != *" $1 "* ]]; then
        echo "gpu_check.sh: no phase is called '$1'; there are: ${phases[*]}, sanitize" >&2
        exit 2
      fi
      wanted+=("$1")
      ;;
  esac
  shift
done
[ ${#wanted[@]} -gt 0 ] || wanted=("${phases[@]}")

if [ "$dry_run" = 1 ]; then
  for phase in "${wanted[@]}"; do
    echo "== $phase (at most $limit s)"
    run_inline "$phase"
  done
  exit 0
fi

mkdir -p "$folder"
bad=()
for phase in "${wanted[@]}"; do
  run_phase "$phase" || bad+=("$phase")
done
if [ ${#bad[@]} -gt 0 ]; then
  echo "== not passed: ${bad[*]}"
  exit 1
fi
echo "== all passed: ${wanted[*]}"
