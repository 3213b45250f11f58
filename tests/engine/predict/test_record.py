"""The list and the record beside restored images: resumed, merged, guarded against another run's results."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from datasets.images import write_png
from engine.csv_rows import csv_line, digest
from engine.predict.record import COLUMNS, Predictions, PredictionsError

RECORD = {"weights_sha256": "abc", "tile": None, "device": "CPU"}
DECISIVE = ("weights_sha256", "tile")
IMAGE = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
NAMES = ("a", "b", "c", "d", "new", "b/2", 'a,"1"', "row without image", "image0", "image1", "image2")
INPUTS = dict.fromkeys(NAMES, Path(__file__))  # any file


def add(predictions: Predictions, *names: str) -> None:
    """What a prediction does: the image first, then its row."""
    for name in names:
        write_png(predictions.image(name), IMAGE)
        predictions.add(name, 0.125)


@pytest.fixture
def predictions(tmp_path):
    predictions = Predictions(tmp_path / "images", INPUTS)
    predictions.begin(RECORD, DECISIVE, overwrite=False)
    return predictions


def test_rows_come_back_sorted_and_whole(predictions):
    names = ["b/2", 'a,"1"', "c"]
    add(predictions, *names)
    predictions.merge()
    finished = predictions.finished()
    assert list(finished) == sorted(names)
    assert {(row.name, row.seconds) for row in finished.values()} == {(name, 0.125) for name in names}
    lines = predictions.list.read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and [line.split(",")[0] for line in lines[1:]] == ['"a', "b/2", "c"]


def test_all_processes_rows_are_merged_once(tmp_path, predictions):
    for rank in range(3):
        add(Predictions(tmp_path / "images", INPUTS, rank), f"image{rank}")
    predictions.merge()
    predictions.merge()
    assert list(predictions.finished()) == ["image0", "image1", "image2"]
    assert {path.name for path in tmp_path.iterdir()} == {"images", "images.csv", "images.json"}


def test_a_stopped_run_resumes(tmp_path, predictions):
    add(predictions, "a", "b", "c", "row without image")
    predictions.image("row without image").unlink()
    write_png(predictions.image("image without row"), IMAGE)
    with predictions.new_rows.open("a") as file:
        file.write("d,30.1")  # the kill came here
    again = Predictions(tmp_path / "images", INPUTS, rank=1)
    again.begin(RECORD | {"device": "another"}, DECISIVE, overwrite=False)
    assert again.finished().keys() == {"a", "b", "c"}


@pytest.mark.parametrize("cells", [["a", "0.125000", "99"], ["a", "30.5", "0.9", "0.8", "25.25", "0.125000", "99"]])
def test_an_earlier_versions_rows_are_restored_again(predictions, cells, caplog):
    predictions.list.write_text("name,seconds,bytes,check\n" + csv_line([*cells, digest(cells)]))
    predictions.begin(RECORD, DECISIVE, overwrite=False)
    assert not predictions.finished() and "earlier version" in caplog.text


def test_an_image_whose_input_was_replaced_is_restored_again(tmp_path, predictions, caplog):
    predictions.inputs = {name: tmp_path / f"{name}.blurred" for name in "ab"}
    for name, path in predictions.inputs.items():
        path.write_text(name)
    add(predictions, "a", "b")
    predictions.merge()
    predictions.inputs["b"].write_text("another photograph")
    assert predictions.finished().keys() == {"a"} and "1 input images have changed" in caplog.text


def test_inputs_may_move_but_not_be_others(tmp_path, predictions):
    add(predictions, "a", "b")
    decisive, moved = (*DECISIVE, "input"), RECORD | {"input": ["elsewhere"]}
    predictions.begin(moved, decisive, overwrite=False)
    assert predictions.finished().keys() == {"a", "b"}
    (tmp_path / "other").write_text("another photograph")
    for others in ({"a": Path(__file__), "b": tmp_path / "other"}, {"a": Path(__file__)}):
        predictions.inputs = others
        with pytest.raises(PredictionsError, match="input: "):
            predictions.begin(RECORD | {"input": ["a third place"]}, decisive, overwrite=False)


@pytest.mark.parametrize("change", [{"weights_sha256": "def"}, {"tile": 256}])
def test_another_runs_results_are_left_alone(tmp_path, predictions, change):
    add(predictions, "a")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(PredictionsError, match=f"(?s){next(iter(change))}: .*Use --overwrite .* another --output"):
        Predictions(tmp_path / "images", INPUTS).begin(RECORD | change, DECISIVE, overwrite=False)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_overwrite_removes_the_earlier_results_and_nothing_else(predictions):
    add(predictions, "a")
    predictions.merge()
    add(predictions, "b")
    (predictions.images / "notes.txt").write_text("mine")
    predictions.begin(RECORD | {"tile": 256}, DECISIVE, overwrite=True)
    assert [path.name for path in predictions.images.iterdir()] == ["notes.txt"]
    assert not predictions.finished() and json.loads(predictions.record.read_text())["tile"] == 256


def test_overwriting_goes_on_after_a_stop(predictions):
    predictions.begin(RECORD, DECISIVE, overwrite=True)
    assert not predictions.finished()
    add(predictions, "new")
    predictions.begin(RECORD, DECISIVE, overwrite=True)  # the same command again
    assert set(predictions.finished()) == {"new"}
    predictions.begin(RECORD | {"tile": 256}, DECISIVE, overwrite=True)  # another one
    assert not predictions.finished()
    add(predictions, "new")
    predictions.merge()
    predictions.conclude({})
    predictions.begin(RECORD | {"tile": 256}, DECISIVE, overwrite=True)  # anew, once it has ended
    assert not predictions.finished()


def test_images_of_unknown_origin_are_not_counted_in(tmp_path):
    write_png(tmp_path / "images" / "a.png", IMAGE)
    with pytest.raises(PredictionsError, match="images.json to say what made them"):
        Predictions(tmp_path / "images", INPUTS).begin(RECORD, DECISIVE, overwrite=False)


def test_a_row_that_was_edited_or_cut_is_not_believed(predictions, caplog):
    add(predictions, "a", "b", "c")
    predictions.merge()
    lines = predictions.list.read_text().replace("\nb,0.125", "\nb,9.125").splitlines()
    cut = [line.rpartition(",")[0] if line[0] == "c" else line for line in lines]
    predictions.list.write_text("\n".join(cut) + "\n")
    assert predictions.finished().keys() == {"a"} and "2 rows" in caplog.text
    predictions.merge()
    assert predictions.finished().keys() == {"a"}


def flip_a_pixel(data: bytes) -> bytes:
    place = data.index(b"IDAT") + 10
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def zero_the_pixels(data: bytes) -> bytes:
    begin, end = data.index(b"IDAT") + 4, data.index(b"IEND") - 8
    return data[:begin] + bytes(end - begin) + data[end:]


def another_file(data: bytes) -> bytes:
    """With sound checksums, but of another size."""
    body = b"tEXtnote\0x"
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    place = data.index(b"IDAT") - 4
    return data[:place] + chunk + data[place:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: bytes(len(data)),
        lambda data: data[:-12] + bytes(12),
        flip_a_pixel,
        zero_the_pixels,
        another_file,
    ],
    ids=["empty", "cut", "zero", "no end", "flipped", "zeroed", "another"],
)
def test_an_image_that_is_not_what_was_written_is_not_finished(predictions, damage):
    add(predictions, "a", "b")
    predictions.merge()
    predictions.image("a").write_bytes(damage(predictions.image("a").read_bytes()))
    assert predictions.finished().keys() == {"b"}


def test_a_list_without_checks_is_made_anew(predictions):
    predictions.list.write_text(
        "name,psnr,ssim_matlab_rgb,ssim_per_channel,blurred_psnr,seconds\na,30.5,0.9,0.8,25.2,1\n"
    )
    predictions.begin(RECORD, DECISIVE, overwrite=False)
    assert not predictions.finished()


@pytest.mark.parametrize("row", [b"a,\xff\xfe,1,2", b"a,0.1," + b"7" * 200_000 + b",2", b"\0,1,2,3"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_damaged_row_is_left_out(predictions, row, overwrite):
    add(predictions, "a", "b")
    predictions.merge()
    lines = predictions.list.read_bytes().splitlines()
    predictions.list.write_bytes(b"\n".join([lines[0], row, lines[2], b""]))
    predictions.begin(RECORD, DECISIVE, overwrite)
    assert predictions.finished().keys() == (set() if overwrite else {"b"})


@pytest.mark.parametrize("table", [b"my,own,table\n1,2,3\n", b"name,age\nEve,30\n", b"\x89PNG\r\n\x1a\n" + bytes(50)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_somebody_elses_table_is_refused_and_kept(tmp_path, table, overwrite):
    predictions = Predictions(tmp_path / "images", INPUTS)
    predictions.list.write_bytes(table)
    with pytest.raises(PredictionsError, match="images.csv: not a list of restored images"):
        predictions.begin(RECORD, DECISIVE, overwrite)
    assert predictions.list.read_bytes() == table and list(tmp_path.iterdir()) == [predictions.list]


def test_overwrite_makes_a_wrecked_list_anew_where_its_record_is_there(predictions):
    predictions.list.write_bytes(bytes(100) + b"\n")
    with pytest.raises(PredictionsError):
        predictions.begin(RECORD, DECISIVE, overwrite=False)
    predictions.begin(RECORD, DECISIVE, overwrite=True)
    assert predictions.list.read_text() == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize("content", ["[1, 2", "[1, 2]", "[" * 100_000, ""])
def test_a_damaged_record_is_named(predictions, content):
    predictions.record.write_text(content)
    with pytest.raises(PredictionsError, match="images.json: .* Use --overwrite"):
        predictions.begin(RECORD, DECISIVE, overwrite=False)
    predictions.begin(RECORD, DECISIVE, overwrite=True)
    assert json.loads(predictions.record.read_text()) == RECORD | {"overwriting": True}


def test_the_conclusion_joins_the_record(predictions):
    predictions.conclude({"images": 3})
    assert json.loads(predictions.record.read_text()) == RECORD | {"results": {"images": 3}}


def test_a_dot_in_the_folders_name_stays(tmp_path):
    predictions = Predictions(tmp_path / "run.v2", INPUTS)
    assert predictions.list.name == "run.v2.csv" and predictions.record.name == "run.v2.json"


@pytest.mark.parametrize("name", ["../mine", "{folder}/mine", "x" * 5000, "a\0b"])
def test_overwrite_removes_nothing_outside_its_folder(tmp_path, predictions, name):
    (tmp_path / "mine.png").write_bytes(b"png")
    predictions.list.write_text(f"name,seconds,bytes,check\n{name.format(folder=tmp_path)},1,1,1\n")
    predictions.begin(RECORD, DECISIVE, overwrite=True)
    assert (tmp_path / "mine.png").is_file()
