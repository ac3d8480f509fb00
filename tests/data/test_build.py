import shutil

import pytest
import torch

from vmp.config.defaults import get_cfg
from vmp.data import CLASS_NAMES, DATASETS, build_loader, frame_index
from vmp.data.build import build_official_records


@pytest.fixture
def cfg(video_folder):
    cfg = get_cfg()
    cfg.TRAIN.DATASET = "csv"
    cfg.TRAIN.BATCH_SIZE = cfg.TEST.BATCH_SIZE = 4
    cfg.MODEL.NUM_CLASSES = 3
    cfg.DATA.PATH_TO_DATA_DIR = str(video_folder)
    cfg.DATA.NUM_FRAMES, cfg.DATA.SAMPLING_RATE, cfg.DATA.TARGET_FPS = 3, 2, 0.0
    cfg.DATA.TRAIN_JITTER_SCALES, cfg.DATA.TRAIN_CROP_SIZE = [32, 40], 32
    cfg.DATA.TEST_CROP_SIZE = 40
    cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS = 2, 3
    cfg.DATA_LOADER.NUM_WORKERS = 0
    return cfg


def test_each_split_has_its_clips(cfg):
    train, val, test = (build_loader(cfg, split) for split in ("train", "val", "test"))
    assert next(train.epoch(0)).clip.shape == (4, 3, 3, 32, 32)
    assert next(val.epoch(0)).clip.shape == (4, 3, 3, 40, 40)
    assert [len(loader.records) for loader in (train, val, test)] == [11, 5, 5]
    assert [loader.num_views for loader in (train, val, test)] == [1, 1, 6]
    assert [len(loader) for loader in (train, val, test)] == [2, 2, 8]
    assert train.class_names == ("0", "1", "2")


def test_validation_is_the_first_clip_and_the_centre(cfg):
    val = next(build_loader(cfg, "val").epoch(0))
    test = next(build_loader(cfg, "test").epoch(0))
    assert test.view.tolist() == [0, 1, 2, 3]
    assert torch.equal(val.clip[0], test.clip[1])


def test_a_prompt_gets_one_frame_more(cfg):
    cfg.PROMPT.ENABLE = True
    for split in ("train", "val", "test"):
        assert next(build_loader(cfg, split).epoch(0)).clip.shape[2] == 4


def test_a_label_without_a_class_is_refused_with_its_file(cfg):
    cfg.MODEL.NUM_CLASSES = 2
    with pytest.raises(ValueError, match=r"video 2\.mp4: class 2 is not in 0 to 1"):
        build_loader(cfg, "train")


def test_what_is_not_known_is_refused_with_what_is(cfg):
    with pytest.raises(ValueError, match="train, val, test"):
        build_loader(cfg, "validation")
    cfg.TRAIN.DATASET = "kinetics"
    with pytest.raises(ValueError, match="motionshapes"):
        build_loader(cfg, "train")


def test_a_data_set_with_other_classes_is_refused(cfg, tmp_path):
    (tmp_path / "classes.txt").write_text("a\nb\n")
    (tmp_path / "train.csv").write_text("x.mp4 0\n" * 4)
    cfg.DATA.PATH_TO_DATA_DIR = str(tmp_path)
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 3, data set 'csv' has 2 classes"):
        build_loader(cfg, "train")


def test_every_data_set_has_class_names_and_the_common_errors():
    names = {name for name, _ in DATASETS}
    assert names == {name for name, _ in CLASS_NAMES}
    assert names >= {"csv", "utinteraction", "motionshapes"}
    for name in names:
        with pytest.raises(ValueError, match="PATH_TO_DATA_DIR"):
            DATASETS.get(name)("", "train")
        with pytest.raises(ValueError, match="train, test"):
            DATASETS.get(name)("somewhere", "val")
        with pytest.raises(ValueError, match="nowhere"):
            DATASETS.get(name)("nowhere", "train")


def test_what_is_in_quarantine_is_left_out_of_training_and_counted_in_a_test(cfg, tmp_path, caplog):
    path = tmp_path / "quarantine.tsv"
    path.write_text("video 1.mp4\tunreadable: no video stream\nvideo 4.mp4\tstalls\n")
    cfg.DATA.QUARANTINE = str(path)
    with caplog.at_level("WARNING"):
        train = build_loader(cfg, "train")
    assert [record.id for record in train.records] == [
        f"video {v}.mp4" for v in (0, 2, 3, *range(5, 11))
    ]
    assert "training on 9 of 11 official records: 2 quarantined" in caplog.text
    test = build_loader(cfg, "test")
    assert len(test.records) == 5
    failures = [failure for batch in test.epoch(0) for failure in batch.failures]
    assert len(failures) == 2 * test.num_views
    assert {failure.reason for failure in failures} == {
        "quarantined: unreadable: no video stream",
        "quarantined: stalls",
    }


def test_the_official_records_are_all_listed_whatever_a_loader_makes_of_them(cfg, tmp_path):
    path = tmp_path / "quarantine.tsv"
    path.write_text("video 1.mp4\tstalls\n")
    cfg.DATA.QUARANTINE, cfg.MODEL.NUM_CLASSES = str(path), 1
    records = build_official_records(cfg, "train")
    assert [record.excluded for record in records] == ["", "quarantined: stalls", *[""] * 9]
    assert {record.label for record in records} == {0, 1, 2}


def test_long_videos_are_indexed_once_into_the_folder_of_the_data_set(
    cfg, video_folder, tmp_path, monkeypatch
):
    folder = shutil.copytree(video_folder, tmp_path / "videos")
    monkeypatch.setattr(frame_index, "_STORED_FROM", 10)
    cfg.DATA.PATH_TO_DATA_DIR = str(folder)
    list(build_loader(cfg, "val").epoch(0))
    assert len(list((folder / "frame_index").iterdir())) == 5


def test_a_clip_that_takes_too_long_is_reported(cfg):
    cfg.DATA.DECODE_TIMEOUT = 1e-9
    frame_index._indexes.clear()
    failures = [f for batch in build_loader(cfg, "val").epoch(0) for f in batch.failures]
    assert len(failures) == 5
    assert all("took more than" in failure.reason for failure in failures)
