#!/usr/bin/env bash
# All that a machine with a GPU should measure, in one command of less than nine minutes, offline:
#
#   bash benchmarks/gpu.sh [OUT]    # leaves results.md and results.json in OUT, benchmarks/results/
#
# a cold start (one step of gpt10m, with nothing compiled yet), gpt10m from start to end with its
# losses (the run itself goes to OUT/gpt10m/), sampling, and the speed of training. Each has a time
# bound, so that a slow or broken one does not lose the others; the exit code is 1 if one failed.
# PYTHON is the interpreter (python), NANOGPT_DATA_DIR the folder of tinyshakespeare.txt.
# NANOGPT_GPU_SH_REHEARSAL=1 makes everything tiny, to try it on a CPU.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/benchmarks/results}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
if [ -n "${NANOGPT_DATA_DIR:-}" ]; then
    NANOGPT_DATA_DIR=$(cd "$NANOGPT_DATA_DIR" && pwd) || exit 2
    export NANOGPT_DATA_DIR
fi
cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
python=${PYTHON:-python}
seconds=510 # for all four: ten more to wind up, and the last page

fit=(--config configs/gpt10m.yaml --trainer.default_root_dir "$out/gpt10m")
first=(--trainer.max_steps 1 --trainer.limit_val_batches 0 --compile true --card false
    --trainer.logger false)
sampling=(--characters 4000)
train=(--configs gpt10m,bigram,quickstart,gpt_small --turns 1 --rounds 5 --seconds 0.5)
if [ -n "${NANOGPT_GPU_SH_REHEARSAL:-}" ]; then
    fit+=(--model.n_layer 1 --model.n_embd 48 --model.block_size 32 --data.batch_size 4)
    fit+=(--trainer.max_steps 4 --trainer.val_check_interval 2 --trainer.limit_val_batches 2)
    sampling=(--batches 1 --characters 1 --steps 1)
    train=(--configs bigram --turns 1 --rounds 1 --seconds 0.01)
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: PyTorch finds no CUDA here; NANOGPT_GPU_SH_REHEARSAL=1 rehearses on a CPU" >&2
    exit 2
fi
grep -q -e '"--json"' benchmarks/sampling.py && sampling+=(--json "$out/sampling.json")
train+=(--json "$out/train.json")

ran=() failed=0
# measure NAME BOUND SCRIPT OPTIONS...: run a script, keep what it prints in OUT/NAME.txt
measure() {
    local name=$1 bound=$2 begin=$SECONDS code
    shift 2
    echo "== $name, at most $bound s: python $*"
    rm -f "$out/$name.json" "$out/$name.run.json" # of an earlier time
    # SIGINT, so that a run winds up and says what it has; then SIGKILL
    timeout --signal=INT --kill-after=10 "$bound" \
        "$python" benchmarks/run_and_record.py "$out/$name.run.json" "$@" 2>&1 | tee "$out/$name.txt"
    code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || failed=1
    ran+=("$name=$code=$((SECONDS - begin))")
}

command -v nvidia-smi >/dev/null && nvidia-smi
# an empty cache, since what an earlier time compiled would make the start a warm one
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d) && export TORCHINDUCTOR_CACHE_DIR || exit 2
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT
SECONDS=0
measure first_step 90 cli.py fit "${fit[@]}" "${first[@]}" # from start to end: a little too long
measure fit 300 cli.py fit "${fit[@]}"
measure sampling 80 benchmarks/sampling.py "${sampling[@]}"
measure train $((seconds - SECONDS)) benchmarks/train.py "${train[@]}" # what the others left
"$python" benchmarks/report.py "$out" "${ran[@]}" || failed=1
exit $failed
