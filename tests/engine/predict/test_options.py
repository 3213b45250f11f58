"""The flags of the prediction scripts: values, combinations that are impossible, and what reaches the Restorer."""

import argparse

import pytest
import torch

from engine.flags import named_path
from engine.predict.inference import Restorer
from engine.predict.options import add_flags, add_photograph_flags, check_flags, frame_range


@pytest.mark.parametrize("flags", [[""], ["a.png", "--output", ""], ["a.png", "--weights", ""]])
def test_an_empty_path_is_not_the_current_folder(flags, capsys):
    parser = argparse.ArgumentParser()
    add_photograph_flags(parser)
    add_flags(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(flags)
    assert "an empty path" in capsys.readouterr().err


def test_the_current_folder_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(named_path(text)) for text in (".", "a/..", "a/.", "a")] == [str(tmp_path), str(tmp_path), "a", "a"]


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job_name", default="none")
    add_flags(parser)
    arguments = parser.parse_args(["--device", "cpu", *flags])
    check_flags(parser, arguments)
    return arguments


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--tile", "auto"], "--tile"),
        (["--tile", "20"], "--tile"),
        (["--tile", "32", "--overlap", "32"], "--overlap"),
        (["--tile", "32", "--stream"], "--stream"),
        (["--compile", "--stream"], "--compile"),
        (["--local_pooling", "30"], "--local_pooling"),
        (["--device", "cpuu"], "--device"),
    ],
)
def test_impossible_flags_end_with_one_line_that_names_them(flags, named, capsys):
    with pytest.raises(SystemExit) as end:
        parse(*flags)
    *_, line = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and "error: " in line and named in line


@pytest.mark.parametrize(
    "flags, attributes",
    [
        ([], {"tile": None, "streamed": True, "precision": "fp32", "local_pooling": None, "self_ensemble": False}),
        (["--tile", "64", "--overlap", "16"], {"tile": 64, "overlap": 16, "streamed": False}),
        (["--precision", "bf16"], {"precision": "bf16"}),
        (["--local_pooling", "32"], {"local_pooling": 32}),
        (["--self_ensemble"], {"self_ensemble": True}),
        (["--compile"], {"streamed": False}),
    ],
)
def test_flags_reach_the_restorer(weights, monkeypatch, flags, attributes):
    monkeypatch.setattr(torch, "compile", lambda network, **options: network)
    restorer = Restorer.from_flags(weights, parse(*flags))
    assert {name: getattr(restorer, name) for name in attributes} == attributes


@pytest.mark.parametrize("text, expected", [("3:7", slice(3, 7)), (":7", slice(None, 7)), ("3:", slice(3, None))])
def test_frame_ranges(text, expected):
    assert frame_range(text) == expected


@pytest.mark.parametrize("text", ["3", "a:b", "-1:4", "4:4", "5:2"])
def test_ranges_that_are_none(text):
    with pytest.raises(argparse.ArgumentTypeError):
        frame_range(text)
