"""Attacks real trainings, predictions and evaluations at random: nothing may be lost, nothing silently wrong.

    python -m tests.torture --minutes 20
    python -m tests.torture --attempts 1 --attack "damaged final_" --seed 17     (one attempt again)

Undisturbed commands are run once on tiny images. Then each attempt starts from a copy of their folder, kills a process,
damages a file or fills the disk, and gives the same command again. Its outcome is one of

    same        the final result equals the undisturbed one, bit for bit
    line        a clear line was printed: the command ended with a status, or repaired what was wrong
    traceback   a Python traceback, or a process that died of a signal that was not sent
    silent      status 0 and another result
    lost        work before the last save is gone, a command does not go on or hangs, or temporary files stay

The status is 1 if any attempt is of the last three; their folders and what they printed are kept. Linux only.
"""

import argparse
import itertools
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from pathlib import Path

import yaml
from tqdm import tqdm

from tests.arena import JOBS, MODELS, STEPS, Arena, Ended, Failure

OUTCOMES = ("same", "line", "traceback", "silent", "lost")
BAD = OUTCOMES[2:]
ROUTINE = re.compile(r"^\[\d+/\d+\] |resuming from |finished: |starting from |restoring with |-> |images: |scores: ")


# Processes.


def killed_training(arena: Arena, rng: random.Random) -> str:
    """Killed up to three times, with or without the cache and reading processes, then left to finish."""
    arena.begin("fresh")
    how = f"data.workers={rng.randint(0, 2)}", f"data.cache={rng.choice(('none', 'memmap'))}"
    for _ in range(rng.randint(1, 3)):
        arena.disturb("train", rng, *how).check()
    return arena.finish("train", *how)


def killed_command(name: str, arena: Arena, rng: random.Random) -> str:
    """Killed up to twice; what is there then must be whole."""
    anew(arena, name)
    for _ in range(rng.randint(1, 2)):
        arena.disturb(name, rng).check()
        arena.compare(name, whole=False)
    return arena.finish(name)


def killed_reader(arena: Arena, rng: random.Random) -> str:
    arena.begin("fresh")
    process = arena.start("train", "data.workers=2")
    arena.kill_one(process, rng, 0.5 * arena.seconds["train"], main=False)
    arena.end(process).check()
    return arena.finish("train", "data.workers=2")


def killed_rank(arena: Arena, rng: random.Random) -> str:
    """A rank or the launcher killed, and the command given again at once, beside ranks that may train on."""
    if "ranks" not in arena.expected:
        arena.begin("fresh")
        arena.reference("ranks")
    arena.begin("fresh")
    process = arena.start("ranks")
    victim = arena.kill_one(process, rng, arena.seconds["ranks"], main=True)
    if victim != process.pid:
        arena.end(process)  # the other rank's report of a lost connection is a traceback of its own
    arena.run("ranks").check()
    if not arena.wait_for(lambda: not arena.inhabitants(), 60):
        raise Failure("lost", "ranks live on without their launcher")
    return arena.finish("ranks")


def two_at_once(arena: Arena, rng: random.Random) -> str:
    """Two runs of one job: one must go on, the other end with a line."""
    arena.begin("fresh")
    first = arena.start("train")
    time.sleep(rng.uniform(0, 1))
    second = arena.start("train")
    ended = [arena.end(first), arena.end(second)]
    late = any(f"at step {STEPS} of {STEPS}" in one.output for one in ended)  # one began when the other had finished
    for one in ended:
        one.check()
    if all(one.status == 0 for one in ended) and not late:
        raise Failure("silent", "both train over the same files")
    if all(one.status for one in ended):
        raise Failure("lost", "neither goes on")
    return arena.finish("train")


# Disks.


def file_size_limit(arena: Arena, rng: random.Random) -> str:
    """No file may grow beyond a random size, at most somewhat more than that of a training state."""
    arena.begin(rng.choice(("fresh", "half")))
    state = arena.folder / "half" / MODELS / "last_XYScanNet_stage1.pth"
    ended = arena.run("train", largest=rng.randint(1000, int(1.3 * state.stat().st_size)))
    ended.check()
    return "line" if arena.finish("train") == "same" and ended.status else "same"


def full_predictions(arena: Arena, rng: random.Random) -> str:
    name = rng.choice(("predict.py", "predict_GoPro", "evaluate.py"))
    anew(arena, name)
    ended = arena.run(name, largest=rng.randint(10, 8000))
    ended.check()
    arena.compare(name, whole=False)
    return "line" if arena.finish(name) == "same" and ended.status else "same"


def anew(arena: Arena, name: str) -> None:
    """All done, but for a command's own outputs."""
    arena.begin("done")
    for output in JOBS[name].outputs:
        path = arena.work / output
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# Damaged files: what is damaged, in which state of the folder, and the command that reads it.

DAMAGE = {
    "last_": ("half", "results/tiny/models/last_*.pth", "train"),
    "previous_": ("half", "results/tiny/models/previous_last_*.pth", "train"),
    "cache pixels": ("half", "cache/*.rgb", "train"),
    "cache index": ("half", "cache/*.json", "train"),
    "compiled library": ("half", "cache_home/xyscannet/*.so", "train"),
    "recipe": ("half", "configs/tiny/*.yaml", "train"),
    "training image": ("half", "datasets/GoPro/train/*/*.png", "train"),
    "final_": ("done", "results/tiny/models/final_*.pth", "predict.py"),
    "photograph": ("done", "datasets/GoPro/test/blur/*.png", "predict.py"),
    "images.csv": ("done", "results/tiny/images.csv", "predict_GoPro"),
    "scores.csv": ("done", "results/tiny/scores/scores.csv", "evaluate.py"),
    "restored image": ("done", "results/tiny/images/*.png", "evaluate.py"),
}

# These are repaired or refused: a warning does not excuse another result.
REPAIRED = ("last_", "previous_", "cache pixels", "cache index", "compiled library")


def damaged(kind: str, arena: Arena, rng: random.Random) -> str:
    """One file damaged: the command must do as if it were not, or say so."""
    tree, pattern, name = DAMAGE[kind]
    anew(arena, name) if name == "predict.py" else arena.begin(tree)
    path = rng.choice(sorted(arena.work.glob(pattern)))
    before = recipe(path)
    arena.printed.append(f"{path.relative_to(arena.work)}: {damage(path, rng)}\n")
    after = recipe(path)
    changed = [key for key in before | after if before.get(key) != after.get(key)]
    ended = arena.run(name)
    ended.check()
    if ended.status:
        return "line"
    noticed = notices(ended, path, changed)
    if kind in REPAIRED or not noticed:
        arena.compare(name)
    return "line" if noticed else "same"


def damage(path: Path, rng: random.Random) -> str:
    """Flips a bit; of a binary file, sometimes cuts the end off or zeroes a part. Returns what was done."""
    content = bytearray(path.read_bytes())
    place, text = rng.randrange(len(content)), path.suffix in (".yaml", ".csv", ".json")
    way = "flip" if text else rng.choice(("flip", "flip", "cut", "zero"))
    if way == "cut":
        del content[place:]
    elif way == "zero":
        content[place : place + 4096] = bytes(len(content[place : place + 4096]))
    else:
        content[place] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"{way} at byte {place}"


def recipe(path: Path) -> dict[str, object]:
    """A recipe's values by their dotted names; empty for other files, and for what cannot be read."""
    try:
        content = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else {}
        return {f"{section}.{key}": value for section, keys in content.items() for key, value in keys.items()}
    except (ValueError, yaml.YAMLError, AttributeError):
        return {}


def notices(ended: Ended, path: Path, changed: list[str]) -> bool:
    """Whether a line, other than those of any run, names the damaged file or a changed value."""
    return any(
        word in line for line in ended.output.splitlines() if not ROUTINE.search(line) for word in (path.name, *changed)
    )


ATTACKS = {
    "killed training": killed_training,
    **{
        f"killed {name}": (lambda arena, rng, name=name: killed_command(name, arena, rng))
        for name in ("predict.py", "predict_GoPro", "evaluate.py")
    },
    "killed reader": killed_reader,
    "killed rank": killed_rank,
    "two at once": two_at_once,
    "full disk: training": file_size_limit,
    "full disk: others": full_predictions,
    **{f"damaged {kind}": (lambda arena, rng, kind=kind: damaged(kind, arena, rng)) for kind in DAMAGE},
}


# The run.


def attempt(arena: Arena, kind: str, seed: int) -> str:
    """One attack; returns its outcome, and keeps the folder of a bad one."""
    try:
        return ATTACKS[kind](arena, random.Random(seed))
    except Failure as failure:
        outcome, why = failure.outcome, str(failure)
    except Exception:
        outcome, why = "lost", f"what was made cannot be read:\n{traceback.format_exc()}"
    report = f"{kind}, seed {seed}: {outcome}, {why}"
    kept = arena.folder / "bad" / f"{re.sub('[^a-z_]+', '-', kind)}-{seed}"
    shutil.copytree(arena.work, kept, symlinks=True)
    (kept / "report.txt").write_text(report + "\n\n" + "\n".join(arena.printed))
    tail = "\n".join("    " + line[:200] for text in arena.printed for line in text.splitlines()[-6:])
    tqdm.write(f"{report}\n{tail}\n    kept in {kept}", file=sys.stderr)
    return outcome


def order(chosen: list[str], seed: int):
    """(kind, seed) for ever: every kind once in a random order, then again."""
    number = seed
    while True:
        kinds = random.Random(number).sample(chosen, len(chosen))
        for kind in kinds:
            yield kind, number
            number += 1


def table(counts: dict[str, dict[str, int]]) -> str:
    rows = [("attack", "attempts", *OUTCOMES)]
    for kind, of in counts.items():
        rows.append((kind, sum(of.values()), *(of[outcome] for outcome in OUTCOMES)))
    rows.append(("all", *(sum(row[k] for row in rows[1:]) for k in range(1, len(rows[0])))))
    return "\n".join(f"{row[0]:26}" + "".join(f"{value:>11}" for value in row[1:]) for row in rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="of attacks; default %(default)s")
    parser.add_argument("--attempts", type=int, metavar="N", help="end after so many, if the time is not up before")
    parser.add_argument("--seed", type=int, default=0, help="of the first attempt; each has the next")
    parser.add_argument(
        "--attack",
        nargs="+",
        choices=ATTACKS,
        default=list(ATTACKS),
        metavar="KIND",
        help=f"of {', '.join(ATTACKS)}; default: all",
    )
    arguments = parser.parse_args(argv)
    arena = Arena(Path(tempfile.mkdtemp(prefix="torture-")).resolve())
    counts: dict[str, dict[str, int]] = defaultdict(lambda: dict.fromkeys(OUTCOMES, 0))
    try:
        arena.prepare()
        began, length = time.monotonic(), 60 * arguments.minutes
        with tqdm(total=round(length), unit="s", desc="attacking") as bar:
            for kind, seed in itertools.islice(order(arguments.attack, arguments.seed), arguments.attempts):
                counts[kind][attempt(arena, kind, seed)] += 1
                bar.n = min(round(time.monotonic() - began), bar.total)
                bar.set_postfix({outcome: sum(of[outcome] for of in counts.values()) for outcome in OUTCOMES})
                if time.monotonic() - began >= length:
                    break
    finally:
        arena.close()
    print(table(dict(sorted(counts.items()))))
    bad = sum(of[outcome] for of in counts.values() for outcome in BAD)
    if bad:
        print(f"{bad} bad attempts are kept in {arena.folder / 'bad'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
