#!/usr/bin/env bash
# A second stage for vab-tiny (coarse to fine, section 3.3), and what it adds to true coarse codes and to generated ones.
#   recipes/vab_tiny_fine.sh DATA RUN        after recipes/vab_tiny.sh DATA RUN. Goes on where it was cut.
set -euo pipefail
data=$1 run=$2
here=$(dirname "${BASH_SOURCE[0]}")

vab pretrain vab-tiny-fine --store "$run/store" --run "$run/vab/fine"
python "$here/vab_tiny_pack.py" "$run/vab" "$run/decoder" "$run/contrastive" "$run/classes" "$run/two_stages"
python "$here/vab_tiny_measure.py" --data "$data" --store "$run/store" --model "$run/two_stages" --json "$run/two_stages.json"
