#!/usr/bin/env bash
# Checks the CUDA build on a GPU against the CPU, and times it beside PyTorch.
#
#   benches/gpu.sh pack DIR    builds, and packs what a GPU machine needs into DIR and DIR.tar.xz; needs cargo and the CUDA toolkit
#   DIR/gpu.sh [ROW...]        on the GPU machine, which needs the CUDA libraries and, for the comparison, PyTorch
#
# A run takes about three minutes, prints its results as they come, and continues after a failure. PyTorch is taken from the
# interpreter that PYTHON names (default: python3). It prints:
#   1. for each row of the benchmark, whether the losses of 20 steps agree with the CPU's to 1e-5;
#   2. for each binary, the validation score after a short training on the CPU and on the GPU;
#   3. the milliseconds of a training step: ours launch by launch and as a CUDA graph, PyTorch eager and as a CUDA graph.
set -uo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binaries=(mlp lenet resnet textcnn fasttext rnn gru lstm birnn char_lm seq2seq)

pack() {
    local to=$1 name built
    set -e
    mkdir -p "$to"
    cargo build --manifest-path "$here/../Cargo.toml" --features cuda --bins
    built=$(cargo build --manifest-path "$here/../Cargo.toml" --features cuda --bench steps --message-format=json-render-diagnostics |
        sed -n 's/.*"name":"steps".*"executable":"\([^"]*\)".*/\1/p' | tail -1)
    strip -o "$to/steps" "$built"
    for name in "${binaries[@]}"; do
        strip -o "$to/$name" "$(dirname "$built")/../$name"
    done
    cp "$here/gpu.sh" "$here/peers.py" "$to/"
    tar -C "$(dirname "$to")" -cJf "$to.tar.xz" "$(basename "$to")"
    ls -l "$to.tar.xz"
}

case "${1-}" in
    pack) [[ $# -eq 2 ]] || { echo "error: gpu.sh pack takes a folder" >&2; exit 2; }; pack "$2"; exit ;;
    -*) sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'; exit ;;
esac
[[ -x "$here/steps" ]] || { echo "error: no packed binaries in $here: run gpu.sh pack DIR first" >&2; exit 2; }
rows=("$@")
[[ $# -gt 0 ]] || rows=(mlp lenet lenet_epoch mnist_pytorch lstm_small gru_small lstm_large birnn textcnn seq2seq seq2seq_128 resnet20 resnet20_128)
python=${PYTHON:-python3}
threads=$(nproc)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The CUDA libraries that PyTorch brings will do.
packages=$("$python" -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))' 2>/dev/null || true)
for folder in "$packages"/nvidia/*/lib; do
    [[ -d "$folder" ]] && export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder"
done

# Runs a command with a time limit in seconds. A failure is shown in one line instead of its output.
within() {
    local limit=$1 errors=$scratch/errors.$BASHPID status
    shift
    timeout "$limit" "$@" 2>"$errors"
    status=$?
    [[ $status -eq 0 ]] || echo "    failed ($status): $* : $(tail -n 1 "$errors" | cut -c 1-300)" >&2
    return "$status"
}
steps() { within "$1" "$here/steps" "${@:2}" --threads "$threads"; }
milliseconds() { sed -n 's/.*"milliseconds_per_step": \{0,1\}\([0-9.e-]*\).*/\1/p'; }

echo "== the first start, which compiles candle's kernels"
steps 90 mlp --device cuda --losses 1 >/dev/null && echo ok

echo "== losses of 20 steps against the CPU"
for row in "${rows[@]}"; do
    options=(--examples 640)
    case "$row" in
        lstm_large) options+=(--losses 5) ;;
        # Rounding alone moves these by more than 1e-5 in a few steps of f32; the last even of f64.
        mnist_pytorch | resnet20) options+=(--losses 20 --f64) ;;
        resnet20_128) options+=(--losses 5 --f64) ;;
        *) options+=(--losses 20) ;;
    esac
    for device in cpu cuda; do
        steps 60 "$row" "${options[@]}" --device "$device" |
            sed 's/.*\[//; s/\].*//' | tr , '\n' >"$scratch/$device" &
    done
    wait
    paste "$scratch/cpu" "$scratch/cuda" | awk -v row="$row" '
        BEGIN { worst = 0 }
        { d = ($1 - $2) / $1; if (d < 0) d = -d; if (!(d <= worst)) worst = d; n++ }
        END { print row ": " (n > 0 && worst <= 1e-5 ? "ok" : "WRONG") ", " n " steps, at most " worst " apart" }'
done

echo "== short trainings on the CPU and on the GPU: validation scores of the epochs"
score() {
    local name=$1 device=$2 options=(--epochs 2 --quiet --seed 1 --threads "$threads") scores=-
    case "$name" in
        char_lm) options+=(--train-limit 40000) ;;
        resnet) options+=(--train-limit 1000 --layers 8) ;;
        *) options+=(--train-limit 2000) ;;
    esac
    if within 60 "$here/$name" "${options[@]}" --device "$device" --out "$scratch/$name-$device" >/dev/null; then
        scores=$(sed -n 's/.*"val_\(accuracy\|f1\|perplexity\|exact_match\)": \{0,1\}\([0-9.]*\).*/\2/p' "$scratch/$name-$device/metrics.jsonl" | tr '\n' ' ')
    fi
    echo "$name $device: $scores"
}
for name in "${binaries[@]}"; do
    for device in cpu cuda; do
        score "$name" "$device" &
    done
    wait
done

echo "== milliseconds of a training step"
# PyTorch starts slowly, so all rows share a process. Steps that differ or have packed sequences are no graph there.
peers() { within 150 "$python" "$here/peers.py" --device cuda --seconds 0.5 "$@"; }
if [[ -n "$packages" ]]; then
    peers "${rows[@]}" >"$scratch/peers"
    captured=()
    for row in "${rows[@]}"; do
        case "$row" in lenet_epoch | birnn | seq2seq*) ;; *) captured+=("$row") ;; esac
    done
    [[ ${#captured[@]} -eq 0 ]] || peers --graph "${captured[@]}" >"$scratch/peers_graph"
fi
printf '%-13s %10s %10s %14s %14s\n' row eager graph "PyTorch eager" "PyTorch graph"
for row in "${rows[@]}"; do
    eager=$(CANDLE_TEXTBOOK_CUDA_GRAPHS=off steps 30 "$row" --device cuda --seconds 0.5 | milliseconds)
    graph=$(steps 30 "$row" --device cuda --seconds 0.5 | milliseconds)
    peer=$(grep "\"$row\"" "$scratch/peers" 2>/dev/null | milliseconds)
    peer_graph=$(grep "\"$row\"" "$scratch/peers_graph" 2>/dev/null | milliseconds)
    printf '%-13s %10.9s %10.9s %14.9s %14.9s\n' "$row" "${eager:--}" "${graph:--}" "${peer:--}" "${peer_graph:--}"
done
