#!/bin/sh
# Scores several restorations of the same pairs by the metrics of the model card.
#     configs/xyscannet_t/compare.sh PAIRS before=OLD.pth now=configs/xyscannet_t/weights.pth teacher=FOLDER
# PAIRS is a data set with blurred and sharp images; a file is weights to restore its blurred images with, a folder holds
# images that are restored already. The blurred images stand among the bounds of FID and KID and in results/compare/*.csv.
set -eu
if [ $# -lt 2 ]; then sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
pairs=$1 python=${PYTHON:-python} metrics="psnr ssim_matlab_rgb niqe lpips fid kid"
shift
for method; do
    name=${method%%=*} source=${method#*=}
    if [ -f "$source" ]; then
        "$python" predict_GoPro_test_results.py --job_name xyscannet_t --input "$pairs" --weights "$source" \
            --output "results/compare/$name" --overwrite
        source=results/compare/$name
    fi
    echo "$name"
    "$python" evaluate.py --pred "$source" --gt "$pairs" --partial --metrics ${METRICS:-$metrics} --format markdown
done
