#!/usr/bin/env bash
# Students of vab-tiny: copies that need 8, 4, 2 or 1 steps and no guidance. Every step goes on where it was cut.
#   recipes/vab_tiny_student.sh DATA RUN [MODEL]     RUN has the store of recipes/vab_tiny.sh; MODEL is the teacher
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
data=$1 run=$2 model=${3:-$here/../src/vab/assets/vab-tiny}

settings=(dtype=bfloat16)
for steps in 8 4 2 1; do
    vab finetune distill vab-tiny-student --store "$run/store" --out "$run/student-$steps" --init "$model" \
        --decode.num-steps "$steps"
    settings+=("model=$run/student-$steps,dtype=bfloat16" "num_steps=$steps,dtype=bfloat16")
done
# each student, and the teacher in as many steps, against the teacher
python "$here/vab_tiny_levers.py" --data "$data" --store "$run/store" --model "$model" --out "$run/students" \
    "${settings[@]}" --json "$run/students.json"
