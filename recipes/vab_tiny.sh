#!/usr/bin/env bash
# vab-tiny from raw data: codec, latents, VAB, embeddings, classes, numbers. Every step goes on where it was cut.
#   recipes/vab_tiny.sh DATA RUN [SOUNDS...]                e.g. recipes/vab_tiny.sh ../shared/data runs/tiny runs/sounds
#   FROM=MODEL recipes/vab_tiny.sh DATA RUN [SOUNDS...]     e.g. FROM=src/vab/assets/vab-tiny
#   CODEC=MODEL recipes/vab_tiny.sh DATA RUN [SOUNDS...]
# SOUNDS: more folders of sounds, as recipes/vab_tiny_sounds.py makes them. FROM: a model directory to go on from: its
# network is trained for 1,400 steps more; codec, embeddings and classes stay. Its card says how the model that ships was made.
# CODEC: a model whose codec is a start: its components stay, and its decoder is trained for 3,000 steps on the new codes.
# The codes do not depend on the codec's decoder, so half of the cores train the decoder and half the rest.
set -euo pipefail
data=$1 run=$2
more=("${@:3}")
here=$(dirname "${BASH_SOURCE[0]}")
from=${FROM:-} old=${CODEC:-}
trap 'kill $(jobs -p) 2> /dev/null || true' EXIT

[ -f "$run/latents.csv" ] || python "$here/vab_tiny_data.py" "$data" "$run" "${more[@]/#/--sounds=}"
if [ -n "$from" ]; then
    vab extract "$run/latents.csv" -o "$run/store" --preset vab-tiny --fill repeat --codec-path "$from"
    vab pretrain vab-tiny --store "$run/store" --out "$run/vab" --init "$from" \
        --train.learning-rate 2e-3 --train.warmup-steps 50 --max-steps 1400
    codec=$from contrastive=$from/contrastive classes=$from/classes
else
    codec=$run/decoder contrastive=$run/contrastive classes=$run/classes
    levels=(--codec.level-dim 3 --codec.level-hold 10 --codec.hold 30)
    train_codec() { vab codec train "$run/codec.csv" "${levels[@]}" "$@"; }
    export OMP_NUM_THREADS=$((($(nproc) + 1) / 2))
    train_codec --out "$run/codes" --steps 0 ${old:+--init "$old"}
    {
        if [ -z "$old" ]; then
            train_codec --out "$run/codec" --init "$run/codes"
            train_codec --out "$run/decoder" --init "$run/codec" --steps 6500 --adversarial-from 0
        else
            train_codec --out "$run/decoder" --init "$run/codes" --steps 3000 --adversarial-from 0
        fi
    } > "$run/decoder.log" 2>&1 &
    decoder=$!
    vab extract "$run/latents.csv" -o "$run/store" --preset vab-tiny --fill repeat --codec-path "$run/codes"
    vab pretrain vab-tiny --store "$run/store" --out "$run/vab"
    vab finetune contrastive vab-tiny-contrastive --store "$run/store" --out "$run/contrastive" --init "$run/vab"
    vab finetune classify vab-tiny-classes --store "$run/store" --out "$run/classes" --init "$run/contrastive" \
        --train.freeze-trunk --train.learning-rate 1e-2 --max-steps 300
    wait "$decoder" || { tail -n 5 "$run/decoder.log" >&2 && exit 1; }
    export OMP_NUM_THREADS=$(nproc)
fi

[ -f "$run/motion/motion.json" ] || python "$here/vab_tiny_motion.py" "$data" "$run/motion" "${more[@]}"
python "$here/vab_tiny_pack.py" "$run/vab" "$codec" "$contrastive" "$classes" "$run/model" "$run/motion"
python "$here/vab_tiny_rehearsal.py" "$run/store" "$run/model"
python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$run/model" --json "$run/numbers.json"
python "$here/vab_tiny_timing.py" "$data" "$run/model" "$run/timing"
vab evaluate retrieval --store "$run/store" --model "$run/model" --split dev || true # sounds without a photo are left out
python "$here/vab_tiny_known.py" "$data" "$run/store" "$run/model"
for inputs in a v av; do
    vab evaluate classification --store "$run/store" --model "$run/model" --split dev --inputs "$inputs" || true
done
echo "the model is in $run/model; to ship it: cp -r $run/model/* src/vab/assets/vab-tiny/"
