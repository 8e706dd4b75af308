#!/bin/sh
# RefDet, stage 1: the network learns to find things at all.
#
#   DATA=instances.json sh examples/refdet/stage1.sh     labelled images: a COCO .json, or a YOLO data.yaml
#   sh examples/refdet/stage1.sh                         procedural scenes, no data needed
#
# Expected: see the table "Three stages in a row" in docs/refdet.md.
set -eu
RUNS=${RUNS:-runs/refdet}
if [ -n "${DATA:-}" ]; then
    exec surefoot train refdet --stage 1 --preset "${PRESET:-nano}" --data "$DATA" --save-dir "$RUNS/stage1" "$@"
fi
exec surefoot train refdet --stage 1 --preset "${PRESET:-pocket}" --data procedural --save-dir "$RUNS/stage1" "$@"
