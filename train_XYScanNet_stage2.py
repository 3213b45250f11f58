"""Stage 2: larger crops (the released recipe: 320 x 320, batch 8, 4000 epochs), starting from stage 1's final weights.

    python train_XYScanNet_stage2.py --job_name xyscannetp_gopro
    torchrun --nproc_per_node=8 train_XYScanNet_stage2.py --job_name xyscannetp_gopro

Reads configs/JOB_NAME/config_stage2.yaml, writes results/JOB_NAME/. The same command again resumes.
Exit status 75: it was asked to stop and has saved its state.
"""

import sys

from engine.config import parse_stage_config, results_dir, start_weights


def main() -> None:
    config, arguments = parse_stage_config(stage=2, description=__doc__)
    # Only here: --help needs no PyTorch, which takes seconds to import.
    from engine import distributed
    from engine.console import readable_errors
    from engine.lock import run_lock
    from engine.train.preview import preview
    from engine.train.run import TrainingRun
    from engine.train.signals import STOPPED
    from engine.train.trainer import Trainer

    with readable_errors(), distributed.process_group(arguments.device):
        run = TrainingRun(config, arguments.device)  # data, network, optimiser, learning rate
        if arguments.dry_run:
            sys.exit(preview(run))
        with run_lock(results_dir(config.job_name)):  # no other run in the same results
            if not run.resume():  # from last_XYScanNet_stage2.pth
                run.load_weights(start_weights(config))
            finished = Trainer(run).fit()
    if not finished:
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
