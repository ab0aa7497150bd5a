#!/usr/bin/env bash
# Check and measure everything on a GPU with one command, offline, in less than ten minutes:
#
#   bash benchmarks/gpu.sh [OUT]    # default: benchmarks/results/
#
# The steps, in this order, each with a time limit and its output in OUT/NAME.txt: versions, the
# tests for a GPU, a rehearsal of the compiled step, the time of its parts, gpt10m from start to end
# (its run folder is in OUT/gpt10m/), the speed of training, and sampling. Each saves its figures as
# it goes, and none needs another. At the end, also after Ctrl-C or SIGTERM, OUT/results.md,
# results.json and, to take away, OUT/results.tar.gz are written; the exit code is 1 if a step failed.
# PYTHON is the interpreter (default: python), NANOGPT_DATA_DIR the folder of tinyshakespeare.txt.
# NANOGPT_GPU_SH_REHEARSAL=1 makes everything tiny, to try the script on a CPU.
set -uo pipefail

case ${1:-} in -h | --help)
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
    exit
    ;;
esac

SECONDS=0
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root/benchmarks/results}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2
if [ -n "${NANOGPT_DATA_DIR:-}" ]; then
    NANOGPT_DATA_DIR=$(cd "$NANOGPT_DATA_DIR" && pwd) || exit 2
    export NANOGPT_DATA_DIR
fi
python=$(command -v "${PYTHON:-python}") || {
    echo "error: no interpreter ${PYTHON:-python}: set PYTHON to one" >&2
    exit 2
}
[[ $python = /* ]] || python=$PWD/$python
cd "$root" || exit 2
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# a cache of its own: the compilation of the rehearsal is a cold one, those after it are not
export TORCHINDUCTOR_CACHE_DIR=$out/inductor_cache
rm -rf "$TORCHINDUCTOR_CACHE_DIR" "$out/generated_code"
seconds=540 # for all steps together; ending the last one and the report take some more

checks=()
fit=(--config configs/gpt10m.yaml --trainer.default_root_dir "$out/gpt10m")
train=(--configs gpt10m,bigram,quickstart,gpt_small --turns 1 --rounds 5 --seconds 0.5)
sampling=(--batches 1,64,1024 --characters 4000 --min_steps 600)
if [ -n "${NANOGPT_GPU_SH_REHEARSAL:-}" ]; then
    tiny=$out/tiny.yaml
    cat >"$tiny" <<YAML
model: {architecture: gpt, block_size: 8, n_layer: 1, n_head: 2, n_embd: 16, learning_rate: 1.0e-3}
data: {batch_size: 4, corpus: pastiche}
trainer: {max_steps: 4, val_check_interval: 2, limit_val_batches: 2}
YAML
    checks=(--tiny --config "$tiny")
    fit=(--config "$tiny" --trainer.default_root_dir "$out/gpt10m" --card false)
    train=(--configs "$tiny" --turns 1 --rounds 1 --seconds 0.01)
    sampling=(--batches 1 --characters 1 --min_steps 1 --steps 1)
elif ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: no PyTorch, or it finds no CUDA device: set NANOGPT_GPU_SH_REHEARSAL=1 to rehearse on a CPU" >&2
    exit 2
fi

ran=() failed=0 stopped='' child=''
stop() {
    stopped=1
    [ -z "$child" ] || kill -INT "$child"
}
trap stop INT TERM HUP

# measure NAME LIMIT SCRIPT OPTIONS...: run a script and write its output to OUT/NAME.txt
measure() {
    local name=$1 limit=$2 start=$SECONDS code left=$((seconds - SECONDS))
    shift 2
    [ -z "$stopped" ] || return 0
    if [ "$left" -lt 15 ]; then
        echo "== $name: no time is left"
        failed=1
        return 0
    fi
    [ "$limit" -le "$left" ] || limit=$left
    echo "== $name, at most $limit s: python $*"
    rm -f "$out/$name.json" "$out/$name.run.json" # of an earlier call
    : >"$out/$name.txt" # also if the step is stopped before it starts
    # SIGINT first, so that a run saves a checkpoint and prints its results
    timeout --signal=INT --kill-after=10 "$limit" \
        "$python" benchmarks/run_and_record.py "$out/$name.run.json" "$@" >"$out/$name.txt" 2>&1 &
    child=$!
    [ -z "$stopped" ] || kill -INT "$child" # a signal came before it was started
    wait "$child" # which a signal interrupts
    code=$?
    if [ -n "$stopped" ]; then
        wait "$child"
        code=130
    fi
    child=''
    cat "$out/$name.txt"
    [ "$code" = 0 ] || failed=1
    ran+=("$name=$code=$((SECONDS - start))")
}

measure versions 60 benchmarks/gpu_checks.py versions "${checks[@]}" --json "$out/versions.json"
measure tests 90 benchmarks/gpu_checks.py tests --json "$out/tests.json"
TORCH_LOGS=cudagraphs,recompiles,graph_breaks measure rehearse 120 benchmarks/gpu_checks.py \
    rehearse "${checks[@]}" --json "$out/rehearse.json" --code "$out/generated_code"
measure step 90 benchmarks/gpu_checks.py step "${checks[@]}" --json "$out/step.json"
measure fit 300 cli.py fit "${fit[@]}"
measure train 120 benchmarks/train.py "${train[@]}" --json "$out/train.json"
measure sampling 90 benchmarks/sampling.py "${sampling[@]}" --json "$out/sampling.json"

"$python" benchmarks/report.py "$out" "${ran[@]}" || failed=1
archive=$(mktemp) &&
    tar --exclude checkpoints --exclude inductor_cache --exclude results.tar.gz -C "$out" -czf "$archive" . &&
    mv "$archive" "$out/results.tar.gz" || failed=1
[ -z "$stopped" ] || exit 130
exit $failed
