#!/bin/sh
# Scores several restorations of the same pairs with the metrics of the model card.
#     configs/xyscannet_t/compare.sh PAIRS shipped=models/pretrained/xyscannet_t.pth new=NEW.pth teacher=FOLDER
# PAIRS is a data set with a test split of blurred and sharp images. Each name is followed by weights, which restore the
# blurred images into results/compare/NAME, or by a folder of restored images. METRICS="psnr niqe" chooses other metrics.
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
