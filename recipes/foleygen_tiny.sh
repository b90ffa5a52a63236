#!/usr/bin/env bash
# The baseline FoleyGen on exactly the latents and the steps of vab-tiny, and the same numbers for both (Table 1).
#   recipes/foleygen_tiny.sh DATA RUN        after recipes/vab_tiny.sh DATA RUN. Goes on where it was cut.
set -euo pipefail
data=$1 run=$2
here=$(dirname "${BASH_SOURCE[0]}")

vab pretrain foleygen-tiny --store "$run/store" --out "$run/foleygen"
cp "$run/decoder/codec.json" "$run/decoder/codec.safetensors" "$run/foleygen"
for model in model foleygen; do
    python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$run/$model" --json "$run/$model.json"
done
