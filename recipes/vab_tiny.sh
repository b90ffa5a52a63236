#!/usr/bin/env bash
# vab-tiny from raw data: codec, latents, VAB, embeddings, classes, numbers. Every step goes on where it was cut.
#   recipes/vab_tiny.sh DATA RUN [SOUNDS...]    e.g. recipes/vab_tiny.sh ../shared/data runs/tiny
# SOUNDS: more folders of sounds, as recipes/vab_tiny_sounds.py makes them.
# The codes do not depend on the codec's decoder, so half of the cores train the decoder and half the rest.
set -euo pipefail
data=$1 run=$2
more=("${@:3}")
here=$(dirname "${BASH_SOURCE[0]}")
export OMP_NUM_THREADS=$((($(nproc) + 1) / 2))
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT

[ -f "$run/latents.csv" ] || python "$here/vab_tiny_data.py" "$data" "$run" "${more[@]/#/--sounds=}"
vab codec train "$run/codec.csv" --out "$run/codec" --steps 0 # the codes
{
    vab codec train "$run/codec.csv" --out "$run/codec"
    vab codec train "$run/codec.csv" --out "$run/decoder" --init "$run/codec" --steps 6500 --adversarial-from 0
} > "$run/decoder.log" 2>&1 &
decoder=$!
vab extract "$run/latents.csv" -o "$run/store" --preset vab-tiny --fill repeat --codec-path "$run/codec"
vab pretrain vab-tiny --store "$run/store" --out "$run/vab"
vab finetune contrastive vab-tiny-contrastive --store "$run/store" --out "$run/contrastive" --init "$run/vab"
vab finetune classify vab-tiny-classes --store "$run/store" --out "$run/classes" --init "$run/contrastive" \
    --train.freeze-trunk --train.learning-rate 1e-2 --max-steps 300
wait "$decoder" || { tail -n 5 "$run/decoder.log" >&2 && exit 1; }

export OMP_NUM_THREADS=$(nproc)
[ -f "$run/motion/motion.json" ] || python "$here/vab_tiny_motion.py" "$data" "$run/motion"
python "$here/vab_tiny_pack.py" "$run/vab" "$run/decoder" "$run/contrastive" "$run/classes" "$run/model" "$run/motion"
python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$run/model" --json "$run/numbers.json"
vab evaluate retrieval --store "$run/store" --model "$run/model" --split dev || true # sounds without a photo are left out
python "$here/vab_tiny_known.py" "$data" "$run/store" "$run/model"
for inputs in a v av; do
    vab evaluate classification --store "$run/store" --model "$run/model" --split dev --inputs "$inputs" || true
done
echo "the model is in $run/model; to ship it: cp -r $run/model/* src/vab/assets/vab-tiny/"
