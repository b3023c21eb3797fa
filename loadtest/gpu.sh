#!/usr/bin/env bash
# Measures on a GPU what docs/performance/gpu.md says is missing: loadtest/gpu.sh DATA OUT [PART...]
#
# DATA is SST-2's dev.tsv. Every part leaves what it printed in OUT/PART.txt, and is meant to take less than ten minutes
# on one GPU, but for the peers; one that fails does not stop the others. REVMUX_DEVICE (cuda) names another device, on
# which to try the script itself.
set -u
cd "$(dirname "$0")/.."
if [ $# -lt 2 ]; then
    echo "usage: loadtest/gpu.sh DATA OUT [PART...]" >&2
    exit 2
fi
data="$(realpath "$1")" out="$(realpath -m "$2")"
shift 2
export REVMUX_DEVICE="${REVMUX_DEVICE:-cuda}" REVMUX_BACKEND=inductor
mkdir -p "$out"

bench() { python -m server.cli bench --device "$REVMUX_DEVICE" --backend inductor "$@" --json; }
# Random weights, texts of 128 tokens, widths 2, 4 and 8.
shape() { bench --length 128 --shape "$@"; }

# Recordings and layers without padding compute what PyTorch computes.
agreement() {
    python -m pytest -q tests/core/test_inductor.py tests/core/test_unpadded.py &&
        python -m server.cli eval --bundle sst2-minilm --data "$data" --width 1 --device "$REVMUX_DEVICE" --backend inductor
}
# `plain_share_of_matrix_rate`: 60% is aimed at; `share_of_ideal`: 95%.
bert_base() { shape bert-base --batch-tokens 65536; }
# With `peak_bytes`.
bert_large() { shape bert-large --batch-tokens 65536; }
# Batches that are replayed as CUDA graphs, and the last that are not: `over_reference` says what that brings.
small_batches() { shape bert-base --batch-tokens 128 --batch-tokens 512 --batch-tokens 1024 --batch-tokens 2048; }
# A real model and real lengths.
demo() { bench --bundle sst2-minilm --data "$data" --batch-tokens 16384; }
# Of the engine's own throughput 90% is aimed at with 64 texts a request.
served() {
    python -m loadtest.overhead --bundle sst2-minilm --data "$data" --inputs 64 --concurrency 32 --out "$out/served" &&
        cat "$out/served/overhead.md"
}
# 20,000 requests of one text a second are aimed at on 16 cores: with the demo, and with a model that takes no time.
many() {
    python -m experiments.served_rate --data "$data" --bundle sst2-minilm --backend inductor --http-workers 4 \
        --http-workers 8 --load-generators 4 --in-flight 2048 &&
        REVMUX_DEVICE=cpu python -m experiments.served_rate --data "$data" --backend torch --http-workers 4 \
            --http-workers 8 --load-generators 4 --in-flight 2048
}
# Mixed lengths: padding, and requests a second, without padding and with.
padding() {
    for backend in inductor torch; do
        REVMUX_BACKEND=$backend python -m loadtest --bundle sst2-minilm --data "$data" --join 360 --concurrency 256 \
            --load 0.5 --seconds 5 --out "$out/padding-$backend" && cat "$out/padding-$backend/report.md" || return
    done
}
# Plain and guaranteed, one text a request.
load_test() {
    python -m loadtest --bundle sst2-minilm --data "$data" --concurrency 8 --concurrency 64 --concurrency 512 \
        --load 0.5 --seconds 5 --out "$out/load" && cat "$out/load/report.md"
}
# Infinity, vLLM and the rest beside ours.
peers() { python -m loadtest.peers --bundle sst2-minilm --data "$data" --out "$out/peers" && cat "$out/peers/peers.md"; }

[ $# -gt 0 ] || set -- agreement bert_base bert_large small_batches demo served many padding load_test peers
status=0
for part in "$@"; do
    echo "== $part"
    "$part" > "$out/$part.txt" 2> "$out/$part.log" || {
        status=1
        echo "failed: see $out/$part.log" >&2
    }
done
exit "$status"
