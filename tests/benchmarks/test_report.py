"""The report: every section in a process of its own, whatever becomes of it, and always a valid file."""

import importlib
import json

import pytest
import torch

from benchmarks import report
from benchmarks.report import Section

CPU = torch.device("cpu")


def test_a_section_passes_fails_or_is_stopped():
    passed = report.run(Section("good", ("-c", "print('a table')"), 60), 60, CPU)
    failed = report.run(Section("bad", ("-c", "raise SystemExit('a reason')"), 60), 60, CPU)
    stopped = report.run(Section("long", ("-c", "import time; print('begun', flush=True); time.sleep(60)"), 1), 2, CPU)
    assert [result.status for result in (passed, failed, stopped)] == ["passed", "failed", "stopped"]
    assert [result.output for result in (passed, failed, stopped)] == ["a table", "a reason", "begun"]
    assert stopped.seconds < 20
    told = report.run(Section("told", ("-c", "import sys; print(sys.argv[1:])"), 60, on_device=True), 60, CPU)
    assert told.output == "['--device', 'cpu']"


def test_progress_bars_leave_their_last_state_and_long_output_its_ends():
    assert report.shorten(" 10%|#\r100%|##########") == "100%|##########"
    text = report.shorten("begin" + "x" * 10**6 + "end")
    assert text.startswith("begin") and text.endswith("end") and len(text) < 2 * report.OUTPUT_CHARACTERS


@pytest.mark.parametrize("sections", [report.gpu_sections, report.cpu_sections, report.tiny_sections])
def test_sections_are_commands_that_exist_down_to_the_last_flag(sections, monkeypatch):
    for section in sections():
        _, name, *arguments = section.command
        module = importlib.import_module(name)
        if section.on_device:
            monkeypatch.setattr("sys.argv", [name, *arguments, "--device", "cpu"])
            module.parse_arguments()  # exits at an unknown one


def test_what_time_does_not_allow_is_said_and_the_rest_is_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "tiny_sections", lambda: [Section("never", ("-c", "pass"), 60)])
    assert report.main(["--tiny", "--device", "cpu", "--minutes", "0.01", "--output", str(tmp_path)]) == 0
    content = json.loads((tmp_path / "report.json").read_text())
    assert [section["status"] for section in content["sections"]] == ["not reached"]
    assert content["machine"]["torch"] == torch.__version__ and "never" in (tmp_path / "report.md").read_text()


def test_the_readme_gets_a_report_between_its_marks(tmp_path):
    path, readme = tmp_path / "report.json", tmp_path / "README.md"
    machine = {"device": "a device", "date": "2026-01-01", "git": "abc"}
    section = {"title": "Scan", "command": "python x", "status": "passed", "seconds": 2.0, "output": "1.00x"}
    path.write_text(json.dumps({"machine": machine, "sections": [section]}))
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.update_readme(path, readme)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "1.00x" in text and "old" not in text
    path.write_text("[]")
    with pytest.raises(ValueError, match="not a report"):
        report.update_readme(path, readme)
    assert readme.read_text() == text


@pytest.mark.slow
def test_sections_run_and_are_reported(tmp_path, monkeypatch):
    """The one that needs a setting of its environment; test_scripts.py runs every benchmark."""
    sections = [section for section in report.tiny_sections() if "interpreter" in section.title]
    monkeypatch.setattr(report, "tiny_sections", lambda: sections)
    assert report.main(["--tiny", "--device", "cpu", "--minutes", "4", "--output", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "report.json").read_text())["sections"]
    assert found["status"] == "passed" and "1 passed" in found["output"]
