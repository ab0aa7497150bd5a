#!/usr/bin/env bash
# Run every benchmark for a GPU with one command, offline, in less than nine minutes:
#
#   bash benchmarks/gpu.sh [OUT]    # writes results.md and results.json to OUT, benchmarks/results/
#
# The steps are a cold start (one step of gpt10m with nothing compiled), gpt10m from start to end
# with its losses (its run folder is in OUT/gpt10m/), sampling, and the speed of training. Each has a
# time limit, so that a slow or broken step does not lose the others; the exit code is 1 if one fails.
# PYTHON is the interpreter (default: python), NANOGPT_DATA_DIR the folder of tinyshakespeare.txt.
# NANOGPT_GPU_SH_REHEARSAL=1 makes everything tiny, to try the script on a CPU.
set -uo pipefail

case ${1:-} in -h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit
    ;;
esac

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
seconds=510 # for all steps together; ending the last one and the report take some more

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
    echo "error: PyTorch finds no CUDA device: set NANOGPT_GPU_SH_REHEARSAL=1 to rehearse on a CPU" >&2
    exit 2
fi
sampling+=(--json "$out/sampling.json")
train+=(--json "$out/train.json")

ran=() failed=0
# measure NAME LIMIT SCRIPT OPTIONS...: run a script and write its output to OUT/NAME.txt
measure() {
    local name=$1 limit=$2 start=$SECONDS code
    shift 2
    echo "== $name, at most $limit s: python $*"
    rm -f "$out/$name.json" "$out/$name.run.json" # of an earlier call
    # SIGINT first, so that a run saves a checkpoint and prints its results
    timeout --signal=INT --kill-after=10 "$limit" \
        "$python" benchmarks/run_and_record.py "$out/$name.run.json" "$@" 2>&1 | tee "$out/$name.txt"
    code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || failed=1
    ran+=("$name=$code=$((SECONDS - start))")
}

command -v nvidia-smi >/dev/null && nvidia-smi
# an empty cache, because an earlier compilation would make the start a warm one
TORCHINDUCTOR_CACHE_DIR=$(mktemp -d) && export TORCHINDUCTOR_CACHE_DIR || exit 2
trap 'rm -rf "$TORCHINDUCTOR_CACHE_DIR"' EXIT
SECONDS=0
measure first_step 90 cli.py fit "${fit[@]}" "${first[@]}"
measure fit 300 cli.py fit "${fit[@]}"
measure sampling 80 benchmarks/sampling.py "${sampling[@]}"
measure train $((seconds - SECONDS)) benchmarks/train.py "${train[@]}" # the remaining time
"$python" benchmarks/report.py "$out" "${ran[@]}" || failed=1
exit $failed
