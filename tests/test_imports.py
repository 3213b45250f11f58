"""Who may import whom: scripts -> engine -> models | datasets | losses | metrics; nothing imports the leaves."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workplace import ROOT, program, run

CORE = ("models", "datasets", "losses", "metrics")
LEAVES = ("analysis", "benchmarks", "tests")
ALLOWED = {"engine": {"engine", *CORE}, **{name: {name} for name in CORE}}
OURS = {"engine", *CORE, *LEAVES}


def imported(file: Path) -> set[str]:
    """Top-level names of our own packages that a file imports absolutely."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names & OURS


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_keep_to_their_place(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    wrong = {str(file.relative_to(ROOT)): extra for file in files if (extra := imported(file) - ALLOWED[package])}
    assert not wrong


def test_scripts_are_over_the_engine_and_short():
    scripts = [file for file in ROOT.glob("*.py") if file.name != "setup.py"]
    assert len(scripts) >= 8
    for script in scripts:
        assert imported(script) <= {"engine"}, script
        assert len(script.read_text().splitlines()) <= 50, script


def test_importing_needs_no_cuda_package(tmp_path):
    """The heavy optional extra is imported by nobody until it is asked for."""
    code = (
        "import engine.train.trainer, engine.predict.predictor\n"
        "print(sorted({'mamba_ssm', 'causal_conv1d'} & set(sys.modules)))"
    )
    assert run(tmp_path, program(tmp_path, code)).strip() == "[]"


def test_help_needs_no_pytorch():
    """It takes seconds and hundreds of megabytes to import."""
    scripts = ["predict.py", "evaluate.py", "train_XYScanNet_stage1.py", "train_XYScanNet_stage2.py"]
    scripts += ["predict_GoPro_test_results.py", "predict_RWBI_results.py", "predict_test_results.py"]
    modules = ["analysis.compare", "analysis.tables"]  # the others: tests/analysis/test_variants.py
    modules += [*("datasets." + name for name in ("check", "synthesize", "tiles")), "engine.predict.export"]
    code = (
        "import runpy, sys\n"
        "for name in sys.argv[1:]:\n"
        "    sys.argv, run = [name, '--help'], runpy.run_path if name.endswith('.py') else runpy.run_module\n"
        "    try: run(name, run_name='__main__')\n"
        "    except SystemExit as end: print('ends:', name, end.code, *{'torch', 'cv2', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, *scripts, *modules]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.count("usage:") == len(scripts + modules)
    ends = [line.split()[1:] for line in printed.splitlines() if line.startswith("ends:")]
    assert ends[: len(scripts)] == [[script, "0"] for script in scripts]
    assert [end[:2] for end in ends[len(scripts) :]] == [[module, "0"] for module in modules]
    assert not any("torch" in end for end in ends)


def test_ctrl_c_while_pytorch_is_imported_is_a_line():
    code = "import engine; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr == "interrupted\n"
