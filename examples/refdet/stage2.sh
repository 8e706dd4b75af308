#!/bin/sh
# RefDet, stage 2: episodes of videos and reference photos, from the weights of stage 1.
#
#   TRAIN=datasets/train VAL=datasets/val sh examples/refdet/stage2.sh
#
# TRAIN and VAL are folders with samples/ and annotations/. Expected: see the table "Three stages in a row" in
# docs/refdet.md.
set -eu
RUNS=${RUNS:-runs/refdet}
exec surefoot train refdet --stage 2 --preset "${PRESET:-pocket}" --checkpoint "$RUNS/stage1" \
    --data-root "$TRAIN" --val-data-root "$VAL" --save-dir "$RUNS/stage2" "$@"
