"""The batch script queues itself again after a requested stop, and after nothing else."""

import os
import signal
import subprocess
import time

import pytest

from tests.workplace import ROOT

STUBS = {
    "scontrol": 'echo "$@" >> calls',
    "srun": 'exec "$@"',
    "torchrun": """case $(cat mode) in
error) exit 1;;
finished) exit 0;;
stopped) trap 'touch results/tiny/.stopped_stage1; exit 1' TERM; touch started; while :; do sleep 0.05; done;;
esac""",
}


@pytest.fixture
def start(tmp_path):
    """Starts the script where Slurm's and torch's commands are stand-ins, of which torchrun plays the given part."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "results" / "tiny").mkdir(parents=True)
    for name, text in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def run(mode: str) -> subprocess.Popen:
        (tmp_path / "mode").write_text(mode)
        slurm = {"SLURM_JOB_NODELIST": "n", "SLURM_NNODES": "1", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": "77"}
        return subprocess.Popen(
            ["bash", str(ROOT / "configs" / "slurm_two_nodes.sbatch"), "1", "tiny"],
            cwd=tmp_path,
            env=os.environ | slurm | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        )

    return run


def requeued(folder) -> bool:
    return "requeue 77" in (folder / "calls").read_text()


@pytest.mark.parametrize("mode, status", [("error", 1), ("finished", 0)])
def test_not_after_an_error_or_the_end_even_where_an_earlier_stop_left_its_mark(start, tmp_path, mode, status):
    (tmp_path / "results" / "tiny" / ".stopped_stage1").touch()
    assert start(mode).wait(20) == status and not requeued(tmp_path)


def test_after_a_requested_stop(start, tmp_path):
    script = start("stopped")
    while not (tmp_path / "started").exists():
        time.sleep(0.02)
    script.send_signal(signal.SIGUSR1)
    assert script.wait(20) == 0 and requeued(tmp_path)
