#!/usr/bin/env bash
# Runs tests with the CUDA kernels in the emulator, compiled with a sanitizer: sanitize.sh thread|address [TEST OPTIONS],
# such as `--test recurrent`; without options, a step of each model.
# `thread` reports races between the threads of a kernel and between blocks; `address` reports accesses out of bounds,
# misaligned vectors and undefined arithmetic.
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-} in
thread)
    library=libtsan.so
    flags="-fsanitize=thread -g"
    ;;
address)
    library=libasan.so
    flags="-fsanitize=address,undefined -fno-sanitize-recover=all -g"
    ;;
*)
    sed -n '2,5s/^# //p' "$0"
    exit 2
    ;;
esac
shift

host=$(rustc -vV | sed -n 's/^host: //p')
runner=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$host")_RUNNER
export "$runner=env LD_PRELOAD=$(g++ -print-file-name=$library) setarch -R"
export CANDLE_TEXTBOOK_CXXFLAGS=$flags ASAN_OPTIONS=detect_leaks=0 TSAN_OPTIONS=ignore_noninstrumented_modules=1
run() { cargo test --no-default-features --features cuda-emulator "$@" -- --test-threads=1; }
if [[ $# -gt 0 ]]; then
    run "$@"
else
    run --test cuda_emulator
    # A training step of each model.
    run --test cuda_graphs a_step_keeps_to_its_budget
fi
