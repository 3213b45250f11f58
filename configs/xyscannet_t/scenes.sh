#!/bin/sh
# Makes the data for the last training of XYScanNet-T: datasets/xyscannet_t/scenes_train, with more scenes than data.sh has; to
# validate on, scenes_val, three frames of other scenes, and reds_val, tiles of REDS.
#     configs/xyscannet_t/scenes.sh DATA
# DATA holds
#     GoPro/train/GOPR0372_07_00/{blur,sharp}       83 pairs of a training scene
#     GoPro_240fps/GOPR0477_11_00                   299 raw frames of a training sequence
#     GoPro_train_blur/{blur,teacher}               one blurred frame of each of twelve training scenes, and MAXIM's outputs
#     GoPro_averaged/{blur,sharp}                   11 averages of raw frames of three training scenes
#     REDS/{000,001,003,020}/{blur,sharp}           80 pairs
# The photographs of photos.txt are downloaded with apt-get. At the end datasets.check looks for GoPro's test scenes by name.
# Needs 3 GB, and 20 minutes on one core.
set -eu
if [ $# -ne 1 ]; then sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; fi
data=$(realpath "$1") here=$(realpath "$(dirname "$0")")
python=${PYTHON:-python} out=datasets/xyscannet_t parts=datasets/xyscannet_t/scenes
if [ -e "$parts" ]; then echo "$parts is there already; move it away first" >&2; exit 1; fi
held_out="00131 00443 00825"

# link FOLDER EVERY TARGET [PREFIX]: links one in EVERY of FOLDER's images.
link() {
    mkdir -p "$3"
    place=0
    for file in "$1"/*; do
        if [ $((place % $2)) -eq 0 ]; then ln -s "$file" "$3/${4:-}$(basename "$file")"; fi
        place=$((place + 1))
    done
}
synthesize() { "$python" -m datasets.synthesize "$@" --workers "${WORKERS:-1}" --test_every 0; }
tiles() { "$python" -m datasets.tiles "$@" --workers "${WORKERS:-1}"; }

# Photographs.
mkdir -p "$parts/packages" "$parts/photos"
(
    cd "$parts/packages"
    apt-get download $(cut -d' ' -f1 "$here/photos.txt" | sort -u)
    for package in *.deb; do dpkg -x "$package" .; done
)
while read -r package path; do
    ln -s "$(find "$(realpath "$parts/packages")" -path "*/$path")" "$parts/photos/"
done < "$here/photos.txt"

# Real pairs. The sharp images of `taught` are MAXIM's outputs (see models/pretrained/NOTICE.txt).
for kind in blur sharp; do
    link "$data/GoPro/train/GOPR0372_07_00/$kind" 1 "$parts/real/train/GOPR0372_07_00/$kind"
    link "$data/GoPro_averaged/$kind" 1 "$parts/averaged/train/$kind"
    link "$data/REDS/001/$kind" 5 "$parts/reds_001/test/REDS_001/$kind"
done
link "$data/GoPro_train_blur/blur" 1 "$parts/taught/train/blur"
link "$data/GoPro_train_blur/teacher" 1 "$parts/taught/train/sharp"
mkdir -p "$out/scenes_val/test/blur" "$out/scenes_val/test/sharp"
for kind in blur sharp; do
    for name in $held_out; do mv "$parts/taught/train/$kind/$name".* "$out/scenes_val/test/$kind/"; done
done
tiles "$parts/real" "$parts/real_tiles" --size 384 --keep 3
tiles "$parts/real" "$parts/halfreal_tiles" --size 320 --keep 1 --reduce 2
tiles "$parts/taught" "$parts/taught_tiles" --size 384
tiles "$parts/taught" "$parts/halftaught_tiles" --size 320 --reduce 2
tiles "$parts/averaged" "$parts/averaged_tiles" --size 384 --keep 5 --level
tiles "$parts/reds_001" "$parts/reds_001_tiles" --split test --size 640 --keep 2 --level
for kind in blur sharp; do
    link "$(realpath "$parts")/reds_001_tiles/test/$kind/REDS_001" 1 "$out/reds_val/test/$kind"
done

# Averages of the calm clip, of display values as in GoPro's blur and in linear light.
clip="$data/GoPro_240fps/GOPR0477_11_00"
synthesize "$clip" "$parts/clip" --frames --step 4 --fewest 9 --most 51 --seed 1
synthesize "$clip" "$parts/linearclip" --frames --step 9 --fewest 9 --most 41 --gamma 2.2 --seed 2
tiles "$parts/clip" "$parts/clip_tiles" --size 384 --keep 3
tiles "$parts/linearclip" "$parts/linearclip_tiles" --size 384 --keep 2

# Camera shake and moving objects over the sharp frames of all scenes and over photographs.
link "$(realpath "$parts")/taught/train/sharp" 1 "$parts/few" taught-
link "$data/GoPro_averaged/sharp" 1 "$parts/few"
link "$(realpath "$parts")/few" 1 "$parts/frames"
link "$data/GoPro/train/GOPR0372_07_00/sharp" 6 "$parts/frames" GOPR0372-
link "$clip" 24 "$parts/frames" GOPR0477-
for scene in 000 003 020; do link "$data/REDS/$scene/sharp" 4 "$parts/frames" "REDS$scene-"; done
shaken="--noise 0.5 --objects 3"
synthesize "$parts/few" "$parts/closeby" --pairs_per_photo 30 --size 384 --strength 14 --gamma 1 --seed 3 $shaken
synthesize "$parts/frames" "$parts/streets" --pairs_per_photo 12 --size 384 --strength 22 --gamma 1 --seed 4 $shaken
synthesize "$parts/frames" "$parts/linearstreets" --pairs_per_photo 4 --size 384 --strength 16 --gamma 2.2 --seed 5 $shaken
synthesize "$parts/photos" "$parts/places" --pairs_per_photo 6 --size 320 --strength 18 --gamma 1 --seed 6 $shaken
synthesize "$parts/photos" "$parts/linearplaces" --pairs_per_photo 4 --size 320 --strength 11 --gamma 2.2 --seed 7 $shaken

# A folder of links; some pairs count several times. REDS' own pairs are left out: trained on with them, even levelled, the network
# had gained on REDS and lost on GoPro.
parts=$(realpath "$parts")
add() {     # add FOLDER NAME COPIES
    for copy in $(seq "$3"); do
        mkdir -p "$out/scenes_train/$2-$copy"
        for kind in blur sharp; do ln -s "$1/$kind" "$out/scenes_train/$2-$copy/$kind"; done
    done
}
for part in "real 3" "halfreal 1" "taught 8" "halftaught 2" "averaged 4" "clip 3" "linearclip 1"; do
    set -- $part
    add "$parts/${1}_tiles/train" "$1" "$2"
done
for part in closeby streets linearstreets places linearplaces; do
    for scene in "$parts/$part"/train/*; do add "$scene" "$part-$(basename "$scene")" 1; done
done
"$python" -m datasets.check "$out/scenes_train" --split train --partial
for val in scenes_val reds_val; do "$python" -m datasets.check "$out/$val" --split test --partial; done
