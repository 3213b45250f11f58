"""``make demo``: what the shipped weights do, and the whole job in miniature, from sharp photographs to a picture.

Two blurred photographs are restored with the shipped weights. Then blur is synthesised over the shipped photographs; a
miniature network is trained in both stages on most of them; the others, never trained on, are restored and scored.
Everything lies in results/demo/. Further arguments go to both stages:
``python -m engine.demo train.iterations=20``.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.blur import linear_photo, shaken_pair, to_8_bit
from datasets.catalogue import DataSet
from datasets.files import read_json
from datasets.images import read_rgb, write_png
from datasets.layouts import find_pairs
from datasets.synthesize import LINEAR_LIGHT, synthesize_photos

from .config import results_dir
from .picture import Example, save_comparison
from .predict.test_set import predict

JOB = "demo"
FOLDER = results_dir(JOB)
HELD_OUT = ("astronaut", "bridge", "citrus", "pagoda")
SAMPLES = Path("datasets") / "samples"
SHAKEN, BLURRED = SAMPLES / "astronaut.jpg", Path("datasets") / "samples_blurred" / "wicker.jpg"
SIDE, STRENGTH = 480, 10  # pixels: the shaken photograph's side, its mean blur length
HELD_OUT_SET = DataSet(None, "held-out photographs", str(FOLDER / "data"), {}, "images", weights="final")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe of both stages")
    overrides = parser.parse_args(argv).overrides
    started = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)

    say("1/5  restore two blurred photographs with the weights that come with the repository")
    print(restore_shipped())

    say("2/5  blur the sample photographs by random camera shake")
    counts = synthesize_photos(
        SAMPLES, FOLDER / "data", pairs_per_photo=12, size=256, strength=5, test_photos=HELD_OUT, progress=True
    )
    print(f"{counts['train']} pairs to train on; {counts['test']} held out, of {', '.join(HELD_OUT)}")

    for stage in (1, 2):
        say(f"{2 + stage}/5  train stage {stage}")
        run(f"train_XYScanNet_stage{stage}.py", "--job_name", JOB, *overrides)

    say("5/5  restore and score the held-out photographs")
    predict(HELD_OUT_SET, ["--job_name", JOB])

    picture = draw()
    scores = read_json(FOLDER / "images_scores" / "scores.json")["metrics"]
    blurred, restored = (scores[name]["value"] for name in ("blurred_psnr", "psnr"))
    print(
        f"\nblurred {blurred:.2f} dB -> restored {restored:.2f} dB: {restored - blurred:+.2f} dB over "
        f"{scores['psnr']['images']} images never trained on, {time.perf_counter() - started:.0f} s in all"
    )
    print(picture)


def say(what: str) -> None:
    print(f"\n{what}", flush=True)


def run(script: str, *arguments: str) -> None:
    """Run one of the repository's scripts as a user would, showing the command."""
    print(f"$ python {' '.join((script, *arguments))}", flush=True)
    done = subprocess.run([sys.executable, script, *arguments])
    if done.returncode:
        sys.exit(done.returncode)


def restore_shipped() -> Path:
    """Restores a photograph shaken here and a blurred frame of GoPro's; returns their picture."""
    blurred, restored = FOLDER / "photographs", FOLDER / "photographs_restored"
    photo = linear_photo(read_rgb(SHAKEN), SIDE, LINEAR_LIGHT)
    pair = shaken_pair(photo, SIDE, STRENGTH, np.random.default_rng(0))
    shaken, sharp = (to_8_bit(image, LINEAR_LIGHT) for image in pair)
    write_png(blurred / "shaken.png", shaken)
    shutil.copy(BLURRED, blurred)
    run("predict.py", str(blurred), "--output", str(restored))
    examples = [
        Example(SHAKEN.stem, shaken, read_rgb(restored / "shaken.png"), sharp),
        Example("GoPro", read_rgb(BLURRED), read_rgb(restored / f"{BLURRED.stem}.png"), None),
    ]
    picture = FOLDER / "photographs.png"
    save_comparison(examples, picture)
    return picture


def draw() -> Path:
    """Blurred, restored and sharp, of the first pair of each held-out photograph."""
    pairs = find_pairs(FOLDER / "data", "test")
    first = {pair.name.split("/")[0]: pair for pair in reversed(pairs)}
    examples = [
        Example(
            name,
            read_rgb(pair.blurred),
            read_rgb(FOLDER / "images" / f"{pair.name}.png"),
            read_rgb(pair.sharp),  # type: ignore[arg-type]  # the pairs were made of sharp images
        )
        for name, pair in sorted(first.items())
    ]
    picture = FOLDER / "comparison.png"
    save_comparison(examples, picture)
    return picture


if __name__ == "__main__":
    main()
