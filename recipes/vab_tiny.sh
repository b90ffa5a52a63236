#!/usr/bin/env bash
# vab-tiny from raw data: codec, latents, VAB, numbers. Every step goes on where it was cut.
#   recipes/vab_tiny.sh DATA RUN        e.g. recipes/vab_tiny.sh ../shared/data runs/tiny
set -euo pipefail
data=$1 run=$2
here=$(dirname "${BASH_SOURCE[0]}")

[ -f "$run/latents.csv" ] || python "$here/vab_tiny_data.py" "$data" "$run"
vab codec train "$run/codec.csv" --run "$run/codec" --steps 2800 --adversarial-from 1300
vab extract "$run/latents.csv" -o "$run/store" --preset vab-tiny --fill repeat --codec-path "$run/codec"
vab pretrain vab-tiny --store "$run/store" --run "$run/vab"
python "$here/vab_tiny_pack.py" "$run/vab" "$run/codec" "$run/model"
python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$run/model" --json "$run/numbers.json"
echo "the model is in $run/model; to ship it: cp $run/model/* src/vab/assets/vab-tiny/"
