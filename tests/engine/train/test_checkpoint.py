"""Training states on disk: never half-written, the last two kept, every random generator restored."""

import itertools
import random
import signal

import numpy as np
import pytest
import torch

from engine.train import checkpoint
from engine.train.checkpoint import CheckpointError, load_state, previous, random_state, save_state, set_random_state


def test_the_last_two_states_are_kept(tmp_path):
    path = tmp_path / "models" / "last.pth"
    assert load_state(path) is None
    for step in range(3):
        save_state({"step": step}, path)
    assert load_state(path)["step"] == 2
    assert torch.load(previous(path), weights_only=True)["step"] == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["last.pth", "previous_last.pth"]


@pytest.mark.parametrize("failing, call", [("save", 1), ("link", 1), ("replace", 1), ("replace", 2)])
def test_a_crash_at_any_point_leaves_a_state_to_go_on_from(tmp_path, monkeypatch, failing, call):
    path = tmp_path / "last.pth"
    save_state({"step": 0}, path), save_state({"step": 1}, path)
    module = torch if failing == "save" else checkpoint.os
    original, calls = getattr(module, failing), itertools.count(1)

    def crash(*arguments, **options):
        if next(calls) < call:
            return original(*arguments, **options)
        if failing == "save":
            arguments[1].write(b"half a fi")
        raise SystemExit("killed")

    monkeypatch.setattr(module, failing, crash)
    with pytest.raises(SystemExit):
        save_state({"step": 2}, path)
    monkeypatch.undo()
    assert load_state(path)["step"] == 1
    save_state({"step": 3}, path)
    assert load_state(path)["step"] == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pth", "previous_last.pth"]


def test_no_links_on_this_file_system(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    monkeypatch.setattr(checkpoint.os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    save_state({"step": 0}, path), save_state({"step": 1}, path)
    assert load_state(path)["step"] == 1 and torch.load(previous(path), weights_only=True)["step"] == 0


def test_damaged_states(tmp_path, caplog):
    path = tmp_path / "last.pth"
    save_state({"step": 0}, path), save_state({"step": 1}, path)
    path.write_bytes(path.read_bytes()[:100])
    assert load_state(path)["step"] == 0
    assert "last.pth is damaged" in caplog.text and "previous_last.pth" in caplog.text
    path.write_bytes(b""), previous(path).write_bytes(b"")
    with pytest.raises(
        CheckpointError, match="last.pth is damaged.*previous_last.pth is damaged.*to start from scratch"
    ):
        load_state(path)


def test_one_flipped_bit_makes_the_state_before_it_the_newest(tmp_path):
    path = tmp_path / "last.pth"
    save_state({"step": 0}, path), save_state({"step": 1, "weights": torch.ones(10_000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert load_state(path)["step"] == 0


def test_a_folder_in_a_states_place(tmp_path):
    path = tmp_path / "last.pth"
    save_state({"step": 0}, path), save_state({"step": 1}, path)
    path.unlink(), path.mkdir()
    assert load_state(path)["step"] == 0


def test_a_damaged_state_never_takes_the_place_of_the_good_one(tmp_path, monkeypatch):
    """The next save after falling back is cut off at its last step: what was gone on from is still there."""
    path = tmp_path / "last.pth"
    save_state({"step": 0}, path), save_state({"step": 1}, path)
    path.write_bytes(b"cut short")
    assert load_state(path)["step"] == 0 and (tmp_path / "damaged_last.pth").read_bytes() == b"cut short"

    replace = checkpoint.os.replace

    def crash_at_the_end(source, target):
        if target == path:
            raise SystemExit("killed")
        replace(source, target)

    monkeypatch.setattr(checkpoint.os, "replace", crash_at_the_end)
    with pytest.raises(SystemExit):
        save_state({"step": 2}, path)
    monkeypatch.undo()
    assert load_state(path)["step"] == 0


def test_a_state_of_another_program_is_not_resumed(tmp_path):
    torch.save({"epoch": 3, "model_state": {}, "optimizer_state": {}, "scheduler_state": {}}, tmp_path / "last.pth")
    with pytest.raises(CheckpointError, match="of another program.*train.start_from"):
        load_state(tmp_path / "last.pth")


def test_random_generators_continue_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item(), random.gauss(0, 1), np.random.randn()

    draw()
    save_state({"random": random_state()}, tmp_path / "last.pth")
    expected = draw()
    draw()
    set_random_state(load_state(tmp_path / "last.pth")["random"])
    assert draw() == expected


def test_what_interrupts_a_write_from_outside_is_what_is_raised(tmp_path):
    """As the signal of a reading process that has died does, in the middle of the write."""

    class Died(RuntimeError):
        pass

    class Interrupting:
        def __reduce__(self):
            signal.raise_signal(signal.SIGTERM)
            return int, ()

    def die(*_):
        raise Died

    before = signal.signal(signal.SIGTERM, die)
    try:
        with pytest.raises(Died):
            checkpoint.save_atomic({"a": torch.zeros(1000), "b": Interrupting()}, tmp_path / "a.pth")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not list(tmp_path.iterdir())
