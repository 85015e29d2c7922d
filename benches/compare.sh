#!/usr/bin/env bash
# Times one training step of each ROW here and in PyTorch, in turn, each run in a process of its own.
#
#   benches/compare.sh [--rounds N] [--threads N] [--seconds S] [--json FILE] [ROW...]
#
# Rows: mlp, lenet, lenet_epoch (a step of a whole epoch: shuffled, bytes converted to floats), mnist_pytorch (the network of
# PyTorch's MNIST example), lstm_small, gru_small, lstm_large, birnn, textcnn, seq2seq and seq2seq_128 (batches of 64 and
# 128), translate and translate_5 (64 sentences with a beam of 1 and 5, on the CPU), music (16 pieces of 128 steps in four
# voices), resnet20 and resnet20_128 (batches of 32 and 128), and product (a matrix product of 2 * 1024^3 operations, which
# measures the machine's peak rate). Default: all.
# --json also writes the table to FILE, for docs/results.py --cpu.
# The variable PYTHON names the Python interpreter that has PyTorch (default: python3).
# Both sides, benches/steps.rs and benches/peers.py, take `ROW --threads N --seconds S` and print one line of JSON:
# {"name": .., "milliseconds_per_step": .., "peak_rss_mb": ..}
set -euo pipefail

rounds=5 threads=2 seconds=3 json=
progress() { [[ ! -t 2 ]] || printf '\r\033[K%s' "$1" >&2; }
fail() { echo "error: $1" >&2; exit "${2:-1}"; }
while [[ "${1-}" == -* ]]; do
    case "$1" in
        -h | --help) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;;
        --rounds | --threads | --seconds | --json) [[ $# -gt 1 ]] || fail "$1 takes a value" 2; declare "${1#--}=$2"; shift 2 ;;
        *) fail "unknown option $1 (--help shows the known ones)" 2 ;;
    esac
done
[[ "$rounds" =~ ^[1-9][0-9]*$ ]] || fail "--rounds: found $rounds, expected a whole number above 0" 2
[[ $# -gt 0 ]] || set -- mlp lenet lenet_epoch mnist_pytorch lstm_small gru_small lstm_large birnn textcnn \
    seq2seq seq2seq_128 translate translate_5 music resnet20 resnet20_128 product

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
"$python" -c 'import torch' 2>/dev/null ||
    fail "no PyTorch for $python: pip install torch (the CPU build will do), or set PYTHON to an interpreter that has it"

# The profile of `cargo run`, which is optimised.
built=$(cargo build --manifest-path "$here/../Cargo.toml" --bench steps --message-format=json-render-diagnostics)
ours=$("$python" -c '
import json, sys
for message in map(json.loads, sys.stdin):
    if message["reason"] == "compiler-artifact" and message["target"]["name"] == "steps":
        print(message["executable"])' <<<"$built")
[[ -x "$ours" ]] || fail "cargo build made no executable for benches/steps.rs"

results=$(mktemp)
trap 'rm -f "$results"' EXIT
for row in "$@"; do
    for ((round = 1; round <= rounds; round++)); do
        progress "$row: round $round of $rounds"
        "$ours" "$row" --threads "$threads" --seconds "$seconds" >>"$results"
        "$python" "$here/peers.py" "$row" --threads "$threads" --seconds "$seconds" >>"$results"
    done
done
progress ""

echo "$threads threads, median of $rounds rounds in turn, $seconds s each; ratio: PyTorch / ours, above 1 is ours ahead"
"$python" - "$results" "$threads threads, PyTorch %s in eager mode, median of $rounds rounds in turn of $seconds s each" "$json" <<'PYTHON'
import json, sys
from statistics import median

runs = [json.loads(line) for line in open(sys.argv[1])]
rows = []
print(f"{'name':<12} {'ours ms':>9} {'PyTorch ms':>11} {'ratio':>6} {'ours MB':>8} {'PyTorch MB':>11}")
for name in dict.fromkeys(run["name"] for run in runs):
    ours, peer = ([run for run in runs[side::2] if run["name"] == name] for side in (0, 1))
    ms = [median(run["milliseconds_per_step"] for run in side) for side in (ours, peer)]
    mb = [max(run["peak_rss_mb"] for run in side) for side in (ours, peer)]
    print(f"{name:<12} {ms[0]:>9.3f} {ms[1]:>11.3f} {ms[1] / ms[0]:>6.2f} {mb[0]:>8.0f} {mb[1]:>11.0f}")
    rows.append(dict(zip(("name", "ours_ms", "pytorch_ms", "ours_mb", "pytorch_mb"), (name, *ms, *mb))))
if sys.argv[3]:
    import torch
    how = sys.argv[2].replace("%s", torch.__version__.partition("+")[0])
    with open(sys.argv[3], "w") as file:
        json.dump({"how": how, "rows": rows}, file, indent=1)
PYTHON
