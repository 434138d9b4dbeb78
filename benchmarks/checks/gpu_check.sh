#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU, without a network, in under nine minutes.
# shellcheck disable=SC2329  # stages are called by their names
set -uo pipefail

usage() {
    cat << END
usage: benchmarks/checks/gpu_check.sh [OPTION...] [STAGE...]

Runs these stages, or the named ones, each in this order, that of their worth where time is short:
  build     the package, for this GPU's architecture alone, into build/gpu
  test      the GPU tests
  kernels   bench_kernels: against a copy, ATen and torch.compile
  steps     bench_train_step
  default   the main program with its defaults
  sanitize  the GPU parity tests under compute-sanitizer's four tools
  schedule  bench_published_schedule
  cpu       the CPU tests, which see no GPU
The first five have limits that add up to the time of all stages; the others take what is left.
A stage that fails does not stop the next one. build/gpu is kept for later calls.

options:
  --output DIR     where results and logs go (default: gpu-check)
  --archive FILE   tar file with all of them, written anew after every stage: a machine that is
                   taken away then leaves what it has measured
  --wheels DIR     packages that this machine lacks, as wheels; installed before the build
  --weights FILE   checkpoint of torchvision's mobilenet_v2, for the schedule
  --limit SECONDS  time for all stages together (default: 530)
  --commit TEXT    what is checked, where this is no git checkout
  --dry-run        only print the commands, with the time of each

The variable PYTHON names the interpreter that has torch and the build's requirements (default:
python3). Exit status: 0 if every step succeeded, 1 if one failed, 2 for wrong arguments.
END
}

refuse() {
    printf 'error: %s\n' "$1" >&2
    exit 2
}

# ---- arguments -----------------------------------------------------------------------------------

all_stages=(build test kernels steps default sanitize schedule cpu)
stages=()
output=gpu-check archive='' wheels='' weights='' limit=530 commit='' dry_run=''
while (($#)); do
    case $1 in
        --output | --archive | --wheels | --weights | --limit | --commit)
            (($# > 1)) || refuse "$1: needs a value"
            declare "${1#--}=$2"
            shift
            ;;
        --dry-run) dry_run=yes ;;
        -h | --help) usage && exit ;;
        -*) refuse "$1: unknown option; --help lists all" ;;
        *)
            [[ " ${all_stages[*]} " == *" $1 "* ]] ||
                refuse "$1: no stage, accepted are ${all_stages[*]}"
            stages+=("$1")
            ;;
    esac
    shift
done
[[ $limit =~ ^[1-9][0-9]*$ ]] || refuse "--limit: $limit, needed is a number of seconds above 0"
[[ -z $wheels || -d $wheels ]] || refuse "--wheels: $wheels is no folder"
[[ -z $weights || -f $weights ]] || refuse "--weights: $weights is no file"
((${#stages[@]})) || stages=("${all_stages[@]}")
output=$(realpath -m "$output")
[[ -z $archive ]] || archive=$(realpath -m "$archive")
[[ -z $wheels ]] || wheels=$(realpath "$wheels")
[[ -z $weights ]] || weights=$(realpath "$weights")

python=$(command -v "${PYTHON:-python3}") || refuse "PYTHON: ${PYTHON:-python3} is no program"
[[ $python == /* ]] || python=$PWD/$python
cd "$(dirname "${BASH_SOURCE[0]}")/../.." || exit
# A folder and not a virtual environment: the interpreter may be that of one, whose packages another
# would not see.
packages=$PWD/build/gpu
PATH=$(dirname "$python"):$PATH:/usr/local/cuda/bin
export PATH PYTHONPATH=$packages PYTHONUNBUFFERED=1
# Plugins of other projects must not decide about our tests.
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1

# ---- running -------------------------------------------------------------------------------------

failed=0

# run NAME SECONDS COMMAND...: run a step with a time limit, its output in a log of its own.
run() {
    local name=$1 seconds=$2 start=$SECONDS status command
    shift 2
    if [[ $dry_run ]]; then
        printf -v command ' %q' "$@"
        printf '%s: timeout %d%s\n' "$name" "$seconds" "$command" # at once: another step may print beside it
        return
    fi
    ((seconds = limit - start < seconds ? limit - start : seconds))
    if ((seconds <= 0)); then
        printf 'no time was left\n' > "$output/logs/$name.log"
        status=124
    else
        timeout --kill-after=10 "$seconds" "$@" < /dev/null > "$output/logs/$name.log" 2>&1
        status=$?
    fi
    printf '%-20s %6d %8d  %s\n' "$name" "$status" $((SECONDS - start)) "logs/$name.log" |
        tee "$output/logs/$name.row"
    return "$status"
}

# Waits for steps that run side by side.
join() {
    local process
    for process in "$@"; do wait "$process" || failed=1; done
}

stage_build() {
    local install=("$python" -m pip install --no-index --no-deps --upgrade --target "$packages")
    if [[ $wheels ]]; then
        run build-wheels 60 "${install[@]}" "$wheels"/*.whl || failed=1
    fi
    run build 130 env ZSCGAN_EXT_CUDA=1 ${architecture:+CUDAARCHS="$architecture"} \
        "${install[@]}" --no-build-isolation . || failed=1
    run build-info 60 env ZSCGAN_EXT_IMPL=native "$python" -m zscgan_ext.info || failed=1
    local reason='import sys; from zscgan_ext.ops import implementation as i'
    run build-usable 60 "$python" -c "$reason; sys.exit(i.cuda_missing_reason())" || failed=1
}

# run_tests NAME SECONDS ARGUMENTS...: pytest on many cores, large tensors one after the other.
run_tests() {
    local name=$1 seconds=$2 parallel=()
    shift 2
    if "$python" -c 'import xdist' 2> /dev/null; then
        parallel=(-p xdist.plugin -n 12 --dist loadfile)
    fi
    run "$name" "$seconds" env OMP_NUM_THREADS=2 "$python" -m pytest -v --durations=15 \
        "${parallel[@]}" "$@" || failed=1
}

stage_test() { run_tests test 150 -m cuda; }

stage_sanitize() {
    local tool steps=()
    # Every tensor is an allocation of its own, so that an access past its end is one past memory.
    local checked=("$python" -m pytest -q -m cuda python_tests/test_gpu_parity.py)
    local sanitizer=(env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --error-exitcode 9)
    # Memory counts as initialized only by kernels that are looked at: initcheck looks at all.
    local own=(--kernel-name kns=zscgan)
    run initcheck 180 "${sanitizer[@]}" --tool initcheck "${checked[@]}" &
    steps+=($!)
    run memcheck 180 "${sanitizer[@]}" --tool memcheck --report-api-errors no "${own[@]}" \
        "${checked[@]}" &
    steps+=($!)
    for tool in racecheck synccheck; do
        run "$tool" 180 "${sanitizer[@]}" --tool "$tool" "${own[@]}" "${checked[@]}" &
        steps+=($!)
    done
    join "${steps[@]}"
}

stage_kernels() {
    run kernels 120 "$python" -m benchmarks.kernels.bench_kernels --device cuda --quick \
        --json "$output/kernels.json" || failed=1
}

stage_steps() {
    run steps 70 "$python" -m benchmarks.training.bench_train_step --device cuda --batch 128 \
        --classifiers resnet18 resnet20 mobilenet_v2 --implementations eager alike native \
        --json "$output/train_step.json" || failed=1
}

stage_schedule() {
    run schedule 150 "$python" -m benchmarks.baselines.bench_published_schedule --device cuda \
        ${weights:+--weights "$weights"} --json "$output/published_schedule.json" || failed=1
}

stage_default() {
    run default 60 env ZSCGAN_EXT_IMPL=native "$python" -m zscgan_ext.train --device=cuda \
        --overwrite --output="$output/default-run" || failed=1
}

stage_cpu() {
    CUDA_VISIBLE_DEVICES='' run_tests cpu 240 -m 'not cuda'
}

# The GPU as it was found, and what is checked.
describe() {
    printf 'commit %s\n' "${commit:-$(git rev-parse --verify HEAD 2> /dev/null || echo unknown)}"
    date --utc +'date %Y-%m-%dT%H:%M:%SZ'
    uname -srm
    nvcc --version | tail -2
    nvidia-smi
    nvidia-smi -q -d CLOCK,POWER,ECC,PERFORMANCE
}

# The summary of the steps so far, in the order in which they ended; and the archive.
summarize() {
    {
        printf '%-20s %6s %8s  %s\n' step exit seconds log
        find "$output/logs" -name '*.row' -printf '%T@ %p\n' | sort -n | cut -d' ' -f2- |
            xargs -d '\n' cat
    } > "$output/summary.txt"
    [[ $archive ]] || return 0
    # Under its name there is always a whole archive.
    tar --exclude=checkpoints -czf "$archive.part" -C "$output" . && mv "$archive.part" "$archive"
}

# ---- all stages ----------------------------------------------------------------------------------

architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2> /dev/null | head -1)
architecture=${architecture:+${architecture/./}-real}
if [[ ! $dry_run ]]; then
    mkdir -p "$output/logs" || refuse "--output: $output cannot be made"
    rm -f "$output"/logs/*.row
    describe > "$output/environment.txt" 2>&1
fi
for stage in "${stages[@]}"; do
    "stage_$stage"
    [[ $dry_run ]] || summarize
done
[[ ! $dry_run ]] || exit 0

printf '\n'
cat "$output/summary.txt"
printf '%s s in all, results in %s\n' "$SECONDS" "$output"
exit "$failed"
