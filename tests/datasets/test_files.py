"""Atomic writes leave the old file or the new one; walks visit every folder once and read regular files alone."""

import os
import subprocess
import sys

import pytest

from datasets.files import HOST, atomic, walk, write_atomic
from tests.workplace import forbid_reading


def test_the_new_content_is_there_and_nothing_else(tmp_path):
    write_atomic(tmp_path / "a" / "x.txt", "old")
    write_atomic(tmp_path / "a" / "x.txt", b"new")
    assert (tmp_path / "a" / "x.txt").read_bytes() == b"new"
    assert os.listdir(tmp_path / "a") == ["x.txt"]


def test_an_error_keeps_the_old_file_and_leaves_no_other(tmp_path):
    write_atomic(tmp_path / "x", "old")
    with pytest.raises(KeyError), atomic(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


def test_two_writers_have_temporary_files_of_their_own(tmp_path):
    with atomic(tmp_path / "x") as first, atomic(tmp_path / "x") as second:
        assert first != second
        first.write_text("1")
        second.write_text("2")
    assert (tmp_path / "x").read_text() == "1"


def test_content_is_synced_before_the_rename_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (events.append(name), real(*a))[1])
    write_atomic(tmp_path / "x", "content")
    assert events == ["fsync", "replace", "fsync"]


def test_the_error_names_the_file_and_not_the_temporary_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "file" / "x", "content")
    assert caught.value.filename.startswith(str(tmp_path / "file"))


@pytest.mark.timeout(20)
def test_a_walk_visits_each_folder_once_and_passes_over_what_is_no_file(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "skipped").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("a/1", "a/b/2", "skipped/3", ".hidden/4", ".5"):
        (tmp_path / name).write_text("")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "b" / "again").symlink_to(tmp_path / "a")
    (tmp_path / "0link").symlink_to(tmp_path / "a")  # sorted first, but the folder's own name wins
    os.mkfifo(tmp_path / "a" / "pipe")
    for name, target in {"gone": "nowhere", "itself": "itself", "below": "1/x"}.items():  # for the reader to say so
        (tmp_path / "a" / name).symlink_to(target)
    found = [path.relative_to(tmp_path).as_posix() for path in walk(tmp_path, skip=(tmp_path / "skipped",))]
    assert found == ["a/1", "a/below", "a/gone", "a/itself", "a/b/2"]


def test_an_error_without_a_number_keeps_its_text(tmp_path):
    """As libraries raise them."""
    with pytest.raises(OSError, match="no encoder") as caught, atomic(tmp_path / "x"):
        raise OSError("no encoder")
    assert caught.value.errno is None and os.listdir(tmp_path) == []


def test_a_walk_goes_on_after_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    for name in ("a/1", "b/2"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("")
    errors = []
    forbid_reading(monkeypatch, "a")
    assert list(walk(tmp_path, unreadable=errors.append)) == [tmp_path / "b" / "2"]
    assert [error.filename for error in errors] == [str(tmp_path / "a")]
    with pytest.raises(PermissionError):
        list(walk(tmp_path))


def test_what_a_killed_process_has_left_is_removed_and_nothing_else(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    left = tmp_path / f".x.{HOST}-{ended.pid}-0123abcd.tmp"
    others = [
        tmp_path / f".x.{HOST}-{os.getpid()}-0123abcd.tmp",
        tmp_path / ".mine.tmp",
        tmp_path / f".x.elsewhere-{ended.pid}-0123abcd.tmp",
    ]
    for path in (left, *others):
        path.write_text("half")
    write_atomic(tmp_path / "y", "whole")
    assert not left.exists() and all(path.exists() for path in others)
