import bench_stop
import pytest

from tests.conftest import ROOT

RECIPE = str(ROOT / "configs" / "MotionShapes" / "X3D_XS_VMP.yaml")
SMALL = "DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 DATA.TRAIN_JITTER_SCALES [32,36] "
SMALL += "TRAIN.BATCH_SIZE 8 TRAIN.EVAL_PERIOD 0 DATA_LOADER.NUM_WORKERS 0 TENSORBOARD False"


def test_a_run_is_stopped_and_resumed_and_every_wait_is_in_the_table(motionshapes, tmp_path):
    opts = [*SMALL.split(), "DATA.PATH_TO_DATA_DIR", str(motionshapes)]
    seconds = bench_stop.measure_run(RECIPE, opts, tmp_path, repeats=1, updates=4, limit=120)
    # two starts: one resumes, and each saves after 2 and 4 updates, at the latest when it stops
    assert len(seconds[bench_stop.RESUME]) == 1
    assert len(seconds[bench_stop.STOP]) == 2
    assert len(seconds[bench_stop.STALL]) == len(seconds[bench_stop.DISK]) >= 4
    assert min(seconds[bench_stop.RESUME] + seconds[bench_stop.STOP]) > 0
    assert (tmp_path / "log.txt").read_text().count("resumed after") == 1


def test_a_run_that_fails_is_told_with_its_last_line(motionshapes, tmp_path):
    opts = [*SMALL.split(), "DATA.PATH_TO_DATA_DIR", str(tmp_path / "nothing")]
    with pytest.raises(ValueError, match=r"ended before it was stopped: error: .*nothing"):
        bench_stop.measure_run(RECIPE, opts, tmp_path, repeats=1, updates=4, limit=120)


def test_the_table_tells_median_quartiles_and_how_many_there_were():
    result = {"cfg": "X", "checkpoint_bytes": 3 * 2**20, "seconds": {"a": [3.0, 1.0, 2.0]}}
    assert bench_stop.rows(result) == "| X | 3 | a | 2.00 (1.00 to 3.00) | 3 |"
