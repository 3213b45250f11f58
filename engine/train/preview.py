"""What a training run will take, and what will stop or waste it: the report of ``--dry_run``."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from datasets.cache import missing_bytes
from datasets.check import check
from datasets.images import ImageError
from datasets.layouts import LayoutError
from losses import DeblurLoss
from losses.contrast import find_vgg19

from ..config import start_weights
from ..distributed import describe
from ..memory import GIB, PROBE, OutOfMemory, free_memory, peak_allocation
from .checkpoint import CheckpointError, load_state
from .failures import ADVICE, explain_failures
from .run import MISSING_START, TrainingRun

SAMPLES = 8  # pairs measured for swapped images and blur_gamma


def preview(run: TrainingRun) -> int:
    """Print the recipe, the data, the size, time and memory of a run, and the problems found, on the main process.

    Returns:
        the exit status: 1 if something will stop the run, else 0.
    """
    if run.rank:
        return 0
    print(run.describe())
    _check_data(run)
    problems = [*_check_headers(run), *_check_state(run), *_check_cache(run), *_check_step(run)]
    problems += _check_disk(run)  # last: the optimiser's state is known after a step
    for problem in problems:
        print(f"PROBLEM {problem}")
    return 1 if problems else 0


def _check_data(run: TrainingRun) -> None:
    """Print what `datasets.check` says: counts, test scenes, headers, swapped images, blur_gamma."""
    data = run.config.data
    if data.degradation:  # computed from sharp images alone: there are no pairs to compare
        return
    for source, split in ((data.train, "train"), (data.val, "test")):
        if source is not None:
            folders = Path(source) if isinstance(source, str) else [Path(folder) for folder in source]
            check(folders, split, data.variant, SAMPLES)


def _check_headers(run: TrainingRun) -> Iterator[str]:
    try:
        run.data.check()
    except (ImageError, LayoutError) as error:
        yield str(error)


def _check_state(run: TrainingRun) -> Iterator[str]:
    """The state or the weights that the run begins with, and VGG19's."""
    start = start_weights(run.config)
    try:
        state = load_state(run.path("last"), set_aside=False)
        if state is not None:
            run.restore(state)
    except CheckpointError as error:
        yield str(error)
        return
    if state is not None:
        print(f"start: resumes from {run.path('last')} at step {run.iteration} of {run.data.iterations}")
        for change in run.new_changes:
            print(f"changed {change}")
    elif start is not None and not start.is_file():
        yield MISSING_START.format(start)
    else:
        print(f"start: {start or 'random weights'}")
    if "contrast" in run.config.loss.terms and find_vgg19() is None:
        print(
            "contrast loss: VGG19's weights are not here; 548 MB will be downloaded. Without a network, put the file "
            "into models/, or set loss.contrast_weight=0"
        )


def _check_cache(run: TrainingRun) -> Iterator[str]:
    data = run.config.data
    if data.cache == "none":
        return
    needed = sum(missing_bytes(pairs, data.cache_dir) for pairs in (run.data.train_pairs, run.data.val_pairs))
    free = _free_disk(Path(data.cache_dir))
    print(f"cache: {needed / 1e9:.2f} GB to write in {data.cache_dir}, {free / 1e9:.2f} GB free")
    if needed > free:
        yield f"{data.cache_dir}: the cache does not fit; set data.cache_dir to another disk, or data.cache=none"


def _check_step(run: TrainingRun) -> Iterator[str]:
    """Measure one step: on a GPU with a process's full share, on a CPU with one small crop, scaled by pixels."""
    config = run.config
    share = config.data.batch_size // (run.world_size * config.train.accumulate)
    if run.device.type == "cuda":
        count, side = share, config.data.patch_size
    else:
        count, side = 1, min(PROBE, config.data.patch_size)
    try:
        with explain_failures():
            memory, seconds = _measure_step(run, count, side)
    except OutOfMemory as error:
        yield f"a step does not fit: {error}"
        return
    scale = share * config.data.patch_size**2 / (count * side**2)
    hours = seconds * scale * config.train.accumulate * run.data.iterations / 3600
    length = f"{hours:,.3g} h" if hours >= 1 else f"{60 * hours:.2g} min"
    measured = "measured" if scale == 1 else f"estimated from {count} crop of {side} px"
    print(
        f"step: {seconds * scale * config.train.accumulate:.3g} s on {describe(run.device)}, {length} in all "
        f"excluding data loading, communication and validation ({measured})"
    )
    if memory is not None:
        free = free_memory(run.device)
        of = f" of {free / GIB:.1f} GiB free" if free else ""
        print(f"memory: {memory * scale / GIB:.2f} GiB for a step{of}, for each process ({measured})")
        if free and memory * scale > free:
            yield f"a step needs more memory than is free. {ADVICE}"


def _measure_step(run: TrainingRun, count: int, side: int) -> tuple[int | None, float]:
    """(peak memory in bytes, seconds) of a step on ``count`` random crops, without terms whose weights are missing."""
    terms = run.config.loss.terms
    if find_vgg19() is None:
        terms = {name: weight for name, weight in terms.items() if name != "contrast"}
    loss = DeblurLoss(terms).to(run.device, run.dtype)
    sharp = torch.rand(count, 3, side, side, device=run.device, dtype=run.dtype) - 0.5
    blurred = sharp.roll(1, -1)

    def step() -> None:
        with run.autocast():
            restored = run.network(blurred)
        loss(restored, sharp, blurred)[0].backward()
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
        if run.device.type == "cuda":
            torch.cuda.synchronize(run.device)

    step()  # compiles, chooses algorithms, and allocates the optimiser's state
    memory = peak_allocation(step, run.device)
    begin = time.perf_counter()
    step()
    return memory, time.perf_counter() - begin


def _check_disk(run: TrainingRun) -> Iterator[str]:
    """Room for two training states, a third while it is written, and the released weights."""
    weights = sum(value.nbytes for value in run.network.state_dict().values())
    moments = [value for state in run.optimizer.state.values() for value in state.values()]
    state = weights * (2 if run.ema else 1) + sum(v.nbytes for v in moments if isinstance(v, torch.Tensor))
    train = run.config.train
    snapshots = run.data.epoch(run.data.iterations) // train.snapshot_every if train.snapshot_every else 0
    needed = 3 * state + (2 + snapshots) * weights
    folder = run.path("last").parent
    free = _free_disk(folder)
    print(f"disk: {needed / 1e9:.2f} GB for states and weights in {folder}, {free / 1e9:.2f} GB free")
    if needed > free:
        yield f"{folder}: too little disk space for the training states"


def _free_disk(folder: Path) -> int:
    """Free bytes where a folder is, or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free
