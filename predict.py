"""Restore your own photographs; no data set is needed.

    python predict.py photograph.jpg
    python predict.py holiday/ --output holiday_sharp/
    python predict.py photograph.jpg --job_name xyscannetp_gopro

Results are PNGs under the photographs' relative paths in restored/, or in the folder given with --output. 16 bits,
grey, transparency, colour profile and EXIF are kept. The weights are those of --job_name, or the file given with
--weights; without either, the small network's that come with the repository (configs/xyscannet_t). The same command
again continues where it was stopped. Exit status: 0; 1 where a photograph or a folder failed; 2 where nothing was
started.
"""

import argparse
import sys
from pathlib import Path

from engine.predict.options import add_flags, check_flags


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--output", type=Path, default=Path("restored"), metavar="FOLDER", help="default: %(default)s")
    parser.add_argument(
        "--job_name",
        default="xyscannet_t",
        help="whose best_ stage-2 weights to use (default %(default)s, the shipped ones)",
    )
    add_flags(parser)
    arguments = parser.parse_args()
    check_flags(parser, arguments)

    # Only here: --help needs no PyTorch, which takes seconds to import.
    from engine.console import readable_errors
    from engine.predict.album import find_photographs, restore_photographs
    from engine.predict.inference import Restorer
    from engine.predict.weights import find_weights

    with readable_errors():
        album = find_photographs(arguments.input, arguments.output)
        weights = find_weights(arguments.weights, arguments.job_name, "best")
        restorer = Restorer.from_flags(weights, arguments)
        print(f"restoring with {weights} on {restorer.device}", flush=True)
        failed = album.report() + restore_photographs(restorer, album.photographs, arguments.overwrite)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
