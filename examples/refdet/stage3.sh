#!/bin/sh
# RefDet, stage 3: fine-tuning on the same videos with triplets, a still backbone and a quarter of
# procedural episodes, so that what was learnt before is not forgotten.
#
#   TRAIN=datasets/train VAL=datasets/val sh examples/refdet/stage3.sh
#
# Expected: see the table "Three stages in a row" in docs/refdet.md.
set -eu
RUNS=${RUNS:-runs/refdet}
exec surefoot train refdet --stage 3 --preset "${PRESET:-pocket}" --checkpoint "$RUNS/stage2" \
    --data-root "$TRAIN" --val-data-root "$VAL" --save-dir "$RUNS/stage3" "$@"
