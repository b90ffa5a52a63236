#!/usr/bin/env bash
# From the official lists to a row of Table 1: manifests, latents, a trained model, its sounds for VGGSound's test.
#   recipes/paper_table1.sh LISTS MEDIA OUT      e.g. recipes/paper_table1.sh lists media runs
# LISTS has vggsound.csv and the folder audioset of official lists, MEDIA the folders vggsound and audioset.
# Killed at any time and run again, it goes on where it was. Settings are variables (docs/training.md):
#   PRESET    vab-encodec, which is the default, vab-dac (with its second stage) or foleygen-encodec
#   DEVICES   the number of this machine's GPUs; of processes on a CPU
#   LAUNCH    words before vab for extraction and training: srun, or torchrun --nproc-per-node 8 -m
#   DATA_OPTIONS EXTRACT_OPTIONS TRAIN_OPTIONS EVALUATE_OPTIONS    more options of these verbs
set -euo pipefail
[ $# -eq 3 ] || { sed -n '2,9s/^# *//p' "$0" >&2 && exit 2; }
lists=$1 media=$2 out=$3
preset=${PRESET:-vab-encodec} devices=${DEVICES:+--devices $DEVICES} launch=${LAUNCH:-}
codec=encodec fine=
case $preset in
    vab-dac) codec=dac fine=vab-dac-coarse2fine ;;
    vab-dac-*) codec=dac ;;
    vab-tiny-coarse) codec=tiny fine=vab-tiny-fine ;; # miniatures, to try the script
    *-tiny*) codec=tiny ;;
esac
latents=$out/$codec model=$out/$preset

# 1. Which clips are there. AudioSet trains on no video of VGGSound's test. What cannot be read is named and left out.
manifest() { # FILE VERB...
    [ -f "$1" ] || "${@:2}" -o "$1" ${DATA_OPTIONS:-} || { local code=$? && [ -f "$1" ] || exit "$code"; }
}
manifest "$out/vggsound.csv" vab data vggsound "$lists/vggsound.csv" "$media/vggsound"
manifest "$out/as2m.csv" vab data audioset "$lists/audioset" "$media/audioset" --parts 2m eval --exclude "$lists/vggsound.csv"

# 2. Latents: VGGSound at five frames a second, AudioSet at one (B.1). DAC takes the image features that EnCodec has.
extract() { # SET FPS
    local features=
    [ "$codec" != dac ] || [ ! -f "$out/encodec/$1/store.json" ] || features="--features-from $out/encodec/$1"
    $launch vab extract "$out/$1.csv" -o "$latents/$1" --preset "$preset" --fps "$2" --allow-failed 1% \
        $features $devices ${EXTRACT_OPTIONS:-}
}
extract vggsound 5
extract as2m 1

# 3. Training on both; the second stage of a model in two lies in its folder, where generation finds it.
train() { # PRESET RUN
    $launch vab pretrain "$1" --store "$latents/vggsound" --store "$latents/as2m" --out "$2" $devices ${TRAIN_OPTIONS:-}
}
train "$preset" "$model"
[ -z "$fine" ] || train "$fine" "$model/fine"

# 4. Sounds for VGGSound's test, measured against the real ones. Clips that cannot be measured are named and counted.
vab evaluate generation "$out/vggsound.csv" --store "$latents/vggsound" --model "$model" --run "$out/table1" \
    --allow-missing $devices ${EVALUATE_OPTIONS:-} | tee "$model/table1.md" ||
    { code=$? && grep -q "^| $preset |" "$model/table1.md" || exit "$code"; }
