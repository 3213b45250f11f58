"""The picture of several methods: which crops are chosen, what the captions say, what is drawn, and the errors."""

import re

import cv2
import numpy as np
import pytest
from PIL import Image, ImageColor
from skimage.metrics import peak_signal_noise_ratio

from analysis.compare import (
    CROP,
    FRAME,
    FULL_HEIGHT,
    GAP,
    LINE,
    Crop,
    choose_crops,
    draw,
    find_outputs,
    find_pair,
    main,
    most_different,
    read_panels,
)
from analysis.radar import COLOURS
from datasets.images import read_rgb, write_png
from tests.forks import Script
from tests.workplace import ROOT

SIZE, NAME = (90, 150), "scene1/000002"
ORANGE = np.array(ImageColor.getrgb(COLOURS[1]))


def noise(seed, size=SIZE):
    return np.random.default_rng(seed).integers(60, 200, (*size, 3), dtype=np.uint8)


@pytest.fixture
def folders(tmp_path):
    """GoPro's layout with two scenes of two images, and the outputs of two methods, one of them a flat folder."""
    for seed, name in enumerate(
        f"{scene}/{number}" for scene in ("scene1", "scene2") for number in ("000001", "000002")
    ):
        scene, number = name.split("/")
        sharp = noise(seed)
        write_png(tmp_path / "test" / scene / "sharp" / f"{number}.png", sharp)
        write_png(tmp_path / "test" / scene / "blur" / f"{number}.png", cv2.blur(sharp, (5, 5)))
        write_png(tmp_path / "one" / f"{name}.png", cv2.blur(sharp, (3, 3)))
        write_png(tmp_path / "two" / f"{scene}-{number}.png", sharp[:, :, ::-1] // 2)
    return tmp_path


def arguments(folders, *more, image=NAME):
    return [
        image,
        "--blurred",
        f"{folders / 'test'}",
        "--output",
        f"{folders / 'new' / 'picture.png'}",
        "--methods",
        f"first={folders / 'one'}",
        f"second={folders / 'two'}",
        *more,
    ]


def panels_of(folders, *labels):
    methods = [(label, folders / label) for label in labels]
    pair = find_pair(NAME, [folders / "test"])
    return read_panels(pair, {"blurred": pair.blurred, **find_outputs(pair, [folders / "test"], methods)})


# The crops


def test_crops_lie_where_methods_differ_and_the_greater_difference_is_first():
    images = [noise(0, (200, 300)) for _ in range(3)]
    images[1][20:40, 30:50] += 10
    images[2][150:170, 250:270] += 40
    first, second = most_different(images, 2)
    assert first[2:] == second[2:] == CROP
    assert (first.of(images[2]) != first.of(images[0])).any(axis=2).sum() == 400
    assert (second.of(images[1]) != second.of(images[0])).any(axis=2).sum() == 400


@pytest.mark.parametrize("seed", range(3))
def test_each_crop_is_the_best_of_all_windows_that_do_not_overlap_earlier_ones(seed):
    images = [noise(10 * seed + k, (14, 22)) for k in range(3)]
    crops = most_different(images, 20)
    variance = np.stack(images).astype(float).var(axis=0).mean(axis=2)
    taken = np.zeros((14, 22), bool)
    for crop in crops:
        assert crop[2:] == (7, 11)
        free = [Crop(y, x, 7, 11) for y in range(8) for x in range(12) if not Crop(y, x, 7, 11).of(taken).any()]
        assert crop in free
        assert crop.of(variance).sum() == pytest.approx(max(window.of(variance).sum() for window in free))
        crop.of(taken)[:] = True
    assert 1 <= len(crops) <= 4
    assert all(Crop(y, x, 7, 11).of(taken).any() for y in range(8) for x in range(12)), "there is room for another"


def test_a_single_method_is_enlarged_where_blurred_and_sharp_differ(folders):
    blurred, one, sharp = panels_of(folders, "one")
    assert choose_crops([blurred, one, sharp], 2) == most_different([blurred.image, sharp.image], 2)
    assert choose_crops([blurred, one], 2) == most_different([blurred.image, one.image], 2)
    two = panels_of(folders, "two")[1]
    assert choose_crops([blurred, one, two, sharp], 2) == most_different([one.image, two.image], 2)


# The images and their captions


def test_captions_hold_the_psnr_of_whole_images(folders):
    panels = panels_of(folders, "one", "two")
    assert [panel.label for panel in panels] == ["blurred", "one", "two", "sharp"]
    sharp = panels[-1].image
    for panel in panels[:-1]:
        expected = peak_signal_noise_ratio(sharp, panel.image, data_range=255)
        assert panel.caption() == f"{panel.label}\n{expected:.2f} dB"
    assert panels[-1].caption() == "sharp"
    write_png(folders / "one" / f"{NAME}.png", sharp)
    assert panels_of(folders, "one")[1].caption() == "one\nequals sharp"


def test_without_sharp_images_there_is_no_psnr(folders):
    truth = [folders / "test" / "scene1" / "blur"]
    pair = find_pair("000002", truth)
    assert pair.sharp is None
    panels = read_panels(pair, {"blurred": pair.blurred, "one": folders / "one" / f"{NAME}.png"})
    assert [panel.caption() for panel in panels] == ["blurred", "one"]


@pytest.mark.parametrize("image", [NAME, "scene1/000002.png", "scene1/blur/000002.png", "scene1-000002"])
def test_an_image_is_found_by_any_form_of_its_name(folders, image):
    pair = find_pair(image, [folders / "test"])
    assert (pair.name, pair.sharp) == (NAME, folders / "test" / "scene1" / "sharp" / "000002.png")
    found = find_outputs(pair, [folders / "test"], [("one", folders / "one"), ("two", folders / "two")])
    assert found == {"one": folders / "one" / "scene1/000002.png", "two": folders / "two" / "scene1-000002.png"}


def test_blurred_and_sharp_images_in_two_folders(folders):
    scene = folders / "test" / "scene1"
    assert (
        main(
            [
                "000002",
                "--blurred",
                str(scene / "blur"),
                "--sharp",
                str(scene / "sharp"),
                "--methods",
                f"first={folders / 'one' / 'scene1'}",
                "--output",
                str(folders / "picture.png"),
            ]
        )
        == 0
    )
    assert (folders / "picture.png").is_file()


# The picture


def test_tiles_are_the_crops_enlarged_alike_and_framed(folders):
    panels = panels_of(folders, "one", "two")
    crops = [Crop(3, 5, 20, 72), Crop(50, 100, 24, 36)]  # 288 // 72: four times
    picture = np.asarray(draw(NAME, panels, crops))
    left = picture.shape[1]
    width, top = 4 * 72 + 2 * FRAME, GAP + 4 * 20 + 2 * FRAME + GAP
    for panel in reversed(panels):
        left -= GAP + width
        for crop, y, x, colour in ((crops[0], GAP, left, COLOURS[0]), (crops[1], top, left + 72, COLOURS[1])):
            tile = picture[y : y + 4 * crop.height + 2 * FRAME, x : x + 4 * crop.width + 2 * FRAME]
            inner = cv2.resize(crop.of(panel.image), None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
            np.testing.assert_array_equal(tile[FRAME:-FRAME, FRAME:-FRAME], inner)
            outline = np.ones(tile.shape[:2], bool)
            outline[FRAME:-FRAME, FRAME:-FRAME] = False
            assert (tile[outline] == ImageColor.getrgb(colour)).all()


def test_the_whole_image_has_a_frame_around_each_crop(folders):
    crops = [Crop(0, 0, 30, 40), Crop(45, 75, 30, 50)]
    panels = panels_of(folders, "one")
    picture = np.asarray(draw(NAME, panels, crops))
    scale = FULL_HEIGHT / SIZE[0]
    column = picture[GAP : GAP + FULL_HEIGHT, : picture.shape[1] - 3 * (5 * 50 + 2 * FRAME + GAP) - GAP]
    ys, xs = np.nonzero((column == ORANGE).all(axis=2))
    left = (column.shape[1] + GAP - round(SIZE[1] * scale)) // 2  # the image is centred above its caption
    assert (ys.min(), ys.max()) == (45 * scale - FRAME, 75 * scale + FRAME - 1)
    assert xs.min() - left == pytest.approx(75 * scale - FRAME, abs=1)
    assert xs.max() - left == pytest.approx(125 * scale + FRAME - 1, abs=1)
    assert (
        not (column[int(47 * scale) : int(73 * scale), left + int(77 * scale) : left + int(123 * scale)] == ORANGE)
        .all(axis=2)
        .any()
    )
    assert (column[:FRAME, left : left + 40] == ImageColor.getrgb(COLOURS[0])).all()


def test_a_column_is_as_wide_as_its_caption_and_the_picture_as_high_as_its_tiles(folders):
    panels = panels_of(folders, "one")
    crops = [Crop(0, 0, 30, 96), Crop(30, 0, 30, 96), Crop(60, 0, 30, 96), Crop(0, 54, 30, 96), Crop(30, 54, 60, 96)]
    short = draw(NAME, panels, crops)
    assert short.height == 2 * GAP + 3 * 180 + 5 * (2 * FRAME + GAP) + 2 * LINE
    long = draw(NAME, [panels[0], type(panels[0])("a method of many words " * 3, panels[1].image), panels[2]], crops)
    assert long.height == short.height and long.width > short.width + 300
    ink = (np.asarray(long)[-2 * LINE - GAP :] < 128).all(axis=2).any(axis=0)
    assert not ink[:GAP].any() and not ink[-GAP:].any()


# The command


def test_the_command_draws_the_picture_and_prints_crops_that_draw_it_again(folders):
    with open(folders / "printed", "w+") as file:
        code = Script(["-m", "analysis.compare", *arguments(folders)], ROOT, output=file).wait()
        file.seek(0)
        printed = file.read()
    assert code == 0, printed
    path = folders / "new" / "picture.png"
    with Image.open(path) as file:
        assert file.format == "PNG" and file.width > 4 * 200 and file.height > FULL_HEIGHT
    chosen, where = printed.splitlines()
    assert where == f"picture: {path}" and len(re.findall(r"--crop \d+ \d+ 45 75", chosen)) == 2
    again = folders / "again.png"
    assert main([*arguments(folders, *chosen.split()), "--output", str(again)]) == 0
    np.testing.assert_array_equal(read_rgb(again), read_rgb(path))
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["picture.png"]


def test_fewer_crops_than_asked_for_are_told(folders, capsys):
    assert main(arguments(folders, "--crops", "9")) == 0
    printed = capsys.readouterr()
    assert f"no room for more than {printed.out.count('--crop ')} crops" in printed.err


def without_output(folders):
    (folders / "two" / "scene1-000002.png").unlink()
    return [], ["two: has no image called scene1/000002", "restore it with second"]


def without_folder(folders):
    return ["--methods", f"third={folders / 'three'}"], ["three: no such folder"]


def damaged_output(folders):
    path = folders / "one" / f"{NAME}.png"
    path.write_bytes(path.read_bytes()[:-30])
    return [], [f"{path}: truncated", "restore it again"]


def other_size(folders):
    write_png(folders / "one" / f"{NAME}.png", noise(0, (80, 150)))
    return [], ["one/scene1/000002.png: 150x80 pixels", "at its own size"]


def other_size_than_blurred(folders):
    write_png(folders / "one" / "scene1" / "000002.png", noise(0, (80, 150)))
    return (
        [
            "--blurred",
            f"{folders / 'test' / 'scene1' / 'blur'}",
            "--methods",
            f"first={folders / 'one' / 'scene1'}",
            "--crop",
            "0",
            "0",
            "9",
            "9",
        ],
        ["one/scene1/000002.png is 150 x 80", "blur/000002.png is 150 x 90"],
    )


def crop_outside(folders):
    return ["--crop", "60", "10", "31", "20"], ["--crop 60 10 31 20", "blur/000002.png", "Y + H is at most 90"]


def no_height(folders):
    return ["--crop", "60", "10", "0", "20"], ["--crop 60 10 0 20", "at least 1"]


def negative_corner(folders):
    return ["--crop", "-1", "10", "9", "20"], ["--crop -1 10 9 20"]


def not_a_figure(folders):
    return ["--output", f"{folders / 'new' / 'picture.jpg'}"], ["picture.jpg", ".png"]


def two_variants(folders):
    for letter in "JR":
        (folders / f"RealBlur_{letter}_test_list.txt").touch()
    return ["--blurred", str(folders)], ["J and R", "choose a variant"]


@pytest.mark.parametrize(
    "case",
    [
        without_output,
        without_folder,
        damaged_output,
        other_size,
        other_size_than_blurred,
        crop_outside,
        no_height,
        negative_corner,
        not_a_figure,
        two_variants,
    ],
)
def test_bad_input_is_named_and_nothing_is_written(folders, capsys, case):
    more, expected = case(folders)
    image = "000002" if case is other_size_than_blurred else NAME
    with pytest.raises(SystemExit) as stop:
        main(arguments(folders, *more, image=image))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and all(text in error for text in expected), error
    assert not (folders / "new").exists()


@pytest.mark.parametrize("image, expected", [("scene3/000002", "scene1/000001"), ("000002", "scene2/000002")])
def test_a_name_that_fits_none_or_several_is_answered_with_those_there_are(folders, capsys, image, expected):
    with pytest.raises(SystemExit) as stop:
        main(arguments(folders, image=image))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert image in error and expected in error


@pytest.mark.parametrize(
    "more, expected",
    [
        (["--methods", "results"], "'results' is not NAME=FOLDER"),
        (["--crops", "0"], "at least one"),
        (["--methods", "a=b", "a=c"], "a appears twice"),
        (["--methods", "sharp=b"], "sharp appears twice"),
    ],
)
def test_arguments_that_make_no_sense_end_with_the_usage(folders, capsys, more, expected):
    with pytest.raises(SystemExit):
        main(arguments(folders, *more))
    assert expected in capsys.readouterr().err
