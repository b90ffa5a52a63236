#!/usr/bin/env bash
# vab-tiny in two stages (coarse to fine, section 3.3): what the second adds to true coarse codes and to generated ones.
#   recipes/vab_tiny_two_stages.sh DATA RUN        after recipes/vab_tiny.sh DATA RUN. Goes on where it was cut.
set -euo pipefail
data=$1 run=$2
here=$(dirname "${BASH_SOURCE[0]}")

vab pretrain vab-tiny-coarse --store "$run/store" --out "$run/two_stages"
vab pretrain vab-tiny-fine --store "$run/store" --out "$run/two_stages/fine"
cp "$run/decoder/codec.json" "$run/decoder/codec.safetensors" "$run/two_stages"
python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$run/two_stages" --json "$run/two_stages.json"
