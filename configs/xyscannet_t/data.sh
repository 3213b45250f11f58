#!/bin/sh
# Makes the data that XYScanNet-T learns from, datasets/xyscannet_t/{train,val}: 3420 pairs of tiles, 18 to validate on;
# and plain_{train,val}, 2790 and 8 of them.
#     configs/xyscannet_t/data.sh GOPRO CLIP REDS PHOTOS
# GOPRO:  GoPro's training scene GOPR0372_07_00, {blur,sharp}/000047 to 000129.
# CLIP:   the raw 240 fps frames 000001 to 000299 of GoPro's training sequence GOPR0477_11_00.
# REDS:   {000,001,003,020}/{blur,sharp} of REDS' training set: ten pairs of a scene, fifty of 020.
# PHOTOS: the photographs that photos.txt lists, in one folder.
# Needs 2.5 GB beside the tiles' sources, and half an hour on two cores.
set -eu
if [ $# -ne 4 ]; then sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
gopro=$(realpath "$1") clip=$(realpath "$2") reds=$(realpath "$3") photos=$(realpath "$4")
python=${PYTHON:-python} out=datasets/xyscannet_t parts=datasets/xyscannet_t/parts
if [ -e "$out" ]; then echo "$out is there already; move it away first" >&2; exit 1; fi

# link FOLDER FIRST LAST EVERY TARGET: links FOLDER's images whose number is in that range, one in EVERY.
link() {
    mkdir -p "$5"
    for file in "$1"/*; do
        name=$(basename "$file") number=$(basename "${file%.*}" | sed 's/^0*\(.\)/\1/')
        if [ "$number" -ge "$2" ] && [ "$number" -le "$3" ] && [ $((number % $4)) -eq $(($2 % $4)) ]; then
            ln -s "$file" "$5/${6:-}$name"
        fi
    done
}

# Real pairs; the end of the GoPro scene and REDS' scene 001 are for validation alone.
for kind in blur sharp; do
    link "$gopro/$kind" 47 117 1 "$parts/real/train/GOPR0372_07_00/$kind"
    link "$gopro/$kind" 123 129 2 "$parts/held_out/test/GOPR0372_07_00/$kind"
    link "$reds/001/$kind" 1 9 2 "$parts/held_out/test/REDS_001/$kind"
    for scene in 000 003 020; do link "$reds/$scene/$kind" 0 9999 1 "$parts/real/train/REDS_$scene/$kind"; done
done

# Blur of moving cameras and objects: averages of 15 to 51 frames blur this calm clip as GoPro's test set is blurred.
"$python" -m datasets.synthesize "$clip" "$parts/clip" --frames --step 3 --fewest 15 --most 51 --seed 1 --test_every 0

# Hand-shake over sharp frames, and over photographs.
link "$gopro/sharp" 48 120 2 "$parts/frames" GOPR0372-
link "$clip" 8 296 8 "$parts/frames" GOPR0477-
for scene in 000 003 020; do link "$reds/$scene/sharp" 0 9999 1 "$parts/frames" "REDS$scene-"; done
"$python" -m datasets.synthesize "$parts/frames" "$parts/streets" --pairs_per_photo 3 --size 640 --strength 20 \
    --noise 0.5 --gamma 1 --seed 2 --test_every 0
for way in "photos 20 3" "mild 8 4"; do
    set -- $way
    "$python" -m datasets.synthesize "$photos" "$parts/$1" --pairs_per_photo 4 --size 320 --strength "$2" \
        --noise 0.5 --gamma 1 --seed "$3" --test_every 0
done

# The most blurred tiles, and those of the images at half their size, half as blurred.
tiles() { "$python" -m datasets.tiles "$@"; }
tiles "$parts/real" "$parts/real_tiles" --size 384 --keep 6
tiles "$parts/clip" "$parts/clip_tiles" --size 384 --keep 3
tiles "$parts/streets" "$parts/streets_tiles" --size 384 --keep 2
tiles "$parts/real" "$parts/halfreal_tiles" --size 320 --keep 3 --reduce 2
tiles "$parts/clip" "$parts/halfclip_tiles" --size 320 --keep 2 --reduce 2
tiles "$parts/streets" "$parts/halfstreets_tiles" --size 320 --keep 1 --reduce 2
tiles "$parts/held_out" "$parts/full_val" --split test --size 512 --keep 1
tiles "$parts/held_out" "$parts/half_val" --split test --size 320 --keep 1 --reduce 2

# One folder to train on, one to validate on: scenes of links into the parts.
parts=$(realpath "$parts")
for tiles in "$parts"/*_tiles/train; do
    part=$(basename "$(dirname "$tiles")" _tiles)
    for scene in "$tiles"/blur/*; do
        scene=$(basename "$scene")
        mkdir -p "$out/train/$part-$scene"
        for kind in blur sharp; do ln -s "$tiles/$kind/$scene" "$out/train/$part-$scene/$kind"; done
    done
done
for part in photos mild; do
    for scene in "$parts/$part"/train/*; do ln -s "$scene" "$out/train/$part-$(basename "$scene")"; done
done
for kind in blur sharp; do
    mkdir -p "$out/val/test/$kind"
    for size in full half; do
        for scene in "$parts/${size}_val/test/$kind"/*; do
            ln -s "$scene" "$out/val/test/$kind/$size-$(basename "$scene")"
        done
    done
done

# The same without REDS' own pairs, whose sharp images are darker than the blurred ones; hand-shake over its frames stays.
out=$(realpath "$out")
mkdir -p "$out/plain_train"
for scene in "$out"/train/*; do
    case $(basename "$scene") in
        real-REDS_* | halfreal-REDS_*) ;;
        *) ln -s "$scene" "$out/plain_train/" ;;
    esac
done
for kind in blur sharp; do
    mkdir -p "$out/plain_val/test/$kind"
    for scene in "$out/val/test/$kind"/*GOPR*; do ln -s "$scene" "$out/plain_val/test/$kind/"; done
done
