#!/usr/bin/env bash
# vab-tiny trained longer on a GPU (make gpu-train): what that needs, and what came of it.
#   recipes/vab_tiny_gpu.sh pack DATA RUN                    before: latents and sounds into build/gpu-inputs
#   recipes/vab_tiny_gpu.sh measure DATA RUN MODEL.tar [CODEC.tar]   after: the dev numbers beside the shipped model's
# e.g. recipes/vab_tiny_gpu.sh pack ../shared/data runs/gpu-tiny. The latents are made with the codec that ships,
# so that a new decoder fits the shipped network and the other way round.
set -euo pipefail
usage() {
    sed -n '2,5s/^# *//p' "$0" >&2
    exit 2
}
[ $# -ge 3 ] || usage
action=$1 data=$2 run=$3
here=$(dirname "${BASH_SOURCE[0]}")

case $action in
    pack)
        [ $# -eq 3 ] || usage
        [ -f "$run/latents.csv" ] || python "$here/vab_tiny_data.py" "$data" "$run"
        vab extract "$run/latents.csv" -o "$run/store" --preset vab-tiny --fill repeat
        python "$here/vab_tiny_gpu.py" pack "$run/store" "$run/codec.csv" build/gpu-inputs
        ;;
    measure)
        [ $# -ge 4 ] && [ $# -le 5 ] || usage
        [ -f "$run/store/store.json" ] || { echo "$run holds no store: pack first" >&2 && exit 1; }
        rm -rf "$run/longer" && mkdir "$run/longer"
        for tar in "${@:4}"; do tar -xf "$tar" -C "$run/longer"; done
        for model in vab-tiny "$run/longer"; do
            name=$(basename "$model")
            python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$model" \
                --json "$run/$name.json"
            { # sounds without a photo are left out, and said so by the exit status
                vab evaluate retrieval --store "$run/store" --model "$model" --split dev || true
                for inputs in a v av; do
                    vab evaluate classification --store "$run/store" --model "$model" --split dev \
                        --inputs "$inputs" || true
                done
            } | tee "$run/$name.txt"
        done
        python "$here/vab_tiny_gpu.py" beside "$run/vab-tiny.json" "$run/longer.json"
        diff --side-by-side --suppress-common-lines --width 160 "$run/vab-tiny.txt" "$run/longer.txt" || true
        ;;
    *) usage ;;
esac
