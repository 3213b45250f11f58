"""The list of data sets."""

from dataclasses import replace

import pytest

from datasets.catalogue import DATA_SETS, OWN, DataSet, data_set
from datasets.layouts import SPLITS
from metrics.catalogue import FLAGS, METRICS, SINGLE, column_names
from metrics.paper import paper_table


@pytest.mark.parametrize("key", DATA_SETS)
def test_every_entry_is_complete(key):
    entry = DATA_SETS[key]
    assert entry.key == key and entry.pairs.keys() <= set(SPLITS) and "test" in entry.pairs
    assert entry.weights in ("best", "final") and set(entry.metrics) <= set(FLAGS)
    assert entry.has_sharp or all(METRICS[name].kind == SINGLE for name in column_names(entry.metrics))
    assert entry.table is None or paper_table(key)["XYScanNet"]


def test_no_two_share_a_place():
    for places in (
        [entry.folder for entry in DATA_SETS.values()],
        [entry.images for entry in DATA_SETS.values()],
        [entry.title for entry in DATA_SETS.values()],
    ):
        assert len(set(places)) == len(DATA_SETS)


def test_the_variant_is_part_of_the_title():
    assert DATA_SETS["realblur_j"].title == "RealBlur-J" and DATA_SETS["gopro"].title == "GoPro"
    assert data_set(None) is OWN and OWN.count is None


def test_paths_are_recognised_by_the_folder_unless_words_say_otherwise():
    mine = DataSet("mine", "Mine", "datasets/Mine", {"test": 3}, "images_mine")
    assert mine.match("/datasets/mine/test/blur/1.png") and not mine.match("/datasets/miner/1.png")
    assert replace(mine, path_words=("ours",)).match("/elsewhere/ours1.png") == 4
