#!/usr/bin/env bash
# Everything that takes a GPU, offline, with the interpreter's own torch (2.11 or later, CUDA build).
#
#     bash benchmarks/gpu_check.sh                  # the next of two commands: 400 s, then 260 s
#     bash benchmarks/gpu_check.sh within SECONDS   # what is worth most and fits
#     bash benchmarks/gpu_check.sh plan [SECONDS]   # only says what that would be, and how long
#     bash benchmarks/gpu_check.sh PHASE ...        # these, without a limit for all together
#
# PHASE is one that `plan` names, a group (build, test, sanitize, bench), `all`, or `report`, which
# sums up what ran so far. Nothing has to be built before: `build` takes a CUDA build that lies in
# lpd_ext/ and makes one otherwise.
#
# A card that is lent for 12 minutes: twice the command without arguments. The first builds, tests
# and times most; the second has the sanitizers, attention and what compiles. With more time, again
# and again `within SECONDS`; with a card of one's own, `all`.
#
# Nothing that ended is lost or run again, whenever a command is killed: a phase that passed with
# the same sources is left out (--fresh: it is not), a benchmark goes on behind the last case that it
# timed. At its limit a phase gets SIGINT, and SIGKILL 20 s later. Where a sanitizer cannot work on
# the card at all, it is "not available here", which is no failure.
#
# Results lie in LPD_GPU_FOLDER (out/gpu_check), and where $OUT is set also there, as they come: the
# report gpu_check.json, measurements.json, bench_lines.jsonl (a line a case), gpu_check.log and
# gpu_check.tar.gz, an archive of all. To go on somewhere else, unpack that into out/gpu_check.
# PYTHON names the interpreter; without a .git, LPD_COMMIT names the commit; LPD_PHASE_SECONDS is a
# limit for every phase. The exit status is 0 when nothing failed.
set -euo pipefail

script=$(realpath "${BASH_SOURCE[0]}")
root=$(dirname "$(dirname "$script")")
export PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

case ${1:-} in
  -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$script" && exit ;;
esac
if ! command -v "$PYTHON" >/dev/null; then
  echo "gpu_check.sh: there is no interpreter $PYTHON; PYTHON names another" >&2
  exit 2
fi
exec "$PYTHON" "$root/benchmarks/gpu_check.py" "$@"
