"""Restore your own photographs and videos; no data set is needed.

    python predict.py photograph.jpg
    python predict.py holiday/ IMG_0001.HEIC clip.mp4 --output sharp/
    python predict.py photograph.jpg --format same --job_name xyscannetp_gopro

Results lie under the inputs' relative paths in restored/, or in the folder given with --output: photographs as PNG,
or as --format says, with their grey, transparency, colour profile and EXIF (16 bits in PNG alone); videos as H.264 with
their sound. The weights are those of --job_name, or the file given with --weights, which may be another network's;
without either, those of XYScanNet-T, which come with the repository (models/pretrained/xyscannet_t.pth). The same
command again continues where it was stopped. Exit status: 0; 1 if an input failed; 2 if nothing was started.
"""

import argparse
import os
import sys

from engine.predict.options import add_flags, add_photograph_flags, check_flags


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_photograph_flags(parser)
    add_flags(parser)
    arguments = parser.parse_args()
    check_flags(parser, arguments)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        parser.error("start it without torchrun: every process would restore every photograph")

    # Only here: --help needs no PyTorch, which takes seconds to import.
    from engine.console import readable_errors
    from engine.predict.album import find_photographs, restore_photographs
    from engine.predict.inference import Restorer
    from engine.predict.weights import find_weights

    with readable_errors():
        album = find_photographs(arguments.input, arguments.output, arguments.format)
        if arguments.frames and not album.videos:
            parser.error("--frames: there is no video among the inputs")
        weights = find_weights(arguments.weights, arguments.job_name, "best")
        restorer = Restorer.from_flags(weights, arguments)
        print(f"restoring with {weights} on {restorer.device}", flush=True)
        failed = album.report() + restore_photographs(
            restorer, album.photographs, arguments.overwrite, arguments.frames, arguments.quality
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
