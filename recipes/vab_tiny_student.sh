#!/usr/bin/env bash
# Students of vab-tiny: copies that need 8, 4, 2 or 1 steps and no guidance. Every step goes on where it was cut.
#   recipes/vab_tiny_student.sh DATA RUN [MODEL]     RUN has the store of recipes/vab_tiny.sh; MODEL is the teacher
set -euo pipefail
data=$1 run=$2 model=${3:-$(dirname "${BASH_SOURCE[0]}")/../src/vab/assets/vab-tiny}
here=$(dirname "${BASH_SOURCE[0]}")

for steps in 8 4 2 1; do
    vab finetune distill vab-tiny-student --store "$run/store" --out "$run/student-$steps" --init "$model" \
        --decode.num-steps "$steps"
done
for steps in 8 4 2 1; do
    python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$run/student-$steps" --steps "$steps" 16
done
python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$model" --steps 1 2 4 8 16
