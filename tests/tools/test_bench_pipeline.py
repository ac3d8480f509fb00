import json
import time
from fractions import Fraction

import bench
import bench_decode
import bench_pipeline
import pytest
import torch

from tests.conftest import ROOT
from vmp.data.clips import Batch
from vmp.engine import progress

RECIPE = str(ROOT / "configs" / "MotionShapes" / "X3D_XS_VMP.yaml")
TINY = "MODEL.NAME timesformer TIMESFORMER.EMBED_DIM 24 TIMESFORMER.NUM_HEADS 2 "
TINY += "TIMESFORMER.DEPTH 2 DATA.TRAIN_CROP_SIZE 32 DATA.TRAIN_JITTER_SCALES [32,36] "
CPU = torch.device("cpu")


@pytest.fixture
def _small(monkeypatch):
    form = bench_decode.Format("HMDB-51", "avi", "mpeg4", (60, 80), Fraction(30), 40, 12, 800_000)
    monkeypatch.setattr(bench_decode, "FORMATS", {"hmdb": form})


@pytest.mark.usefixtures("_small", "_one_thread")
@pytest.mark.parametrize(
    ("asleep", "steps"),
    [("", ["training"]), ("--asleep 40 400", ["asleep, 40 clips/s", "asleep, 400 clips/s"])],
)
def test_every_number_of_workers_is_measured_with_every_step(tmp_path, capsys, asleep, steps):
    out = tmp_path / "out.jsonl"
    command = "pipeline --videos 2 --workers 0 1 --batch 2 --steps 2 --repeats 2 --device cpu "
    command += f"--device-rate 30 --cfg {RECIPE} --out {out} {asleep}"
    bench.main([*command.split(), "--", *TINY.split()])
    (result,) = (json.loads(line) for line in out.read_text().splitlines())
    assert result["format"] == "hmdb"
    assert result["rates"] == [30.0]
    assert result["clip"] == [2, 3, 9, 32, 32]
    assert list(result["epochs"]) == steps
    for name, by_workers in result["epochs"].items():
        assert list(by_workers) == ["0", "1"]
        most = float(name.split()[1]) if asleep else float("inf")
        for epoch in [epoch for epochs in by_workers.values() for epoch in epochs]:
            assert 0 <= epoch["waited"] < 1
            assert 0 < epoch["rate"] <= most
        assert 0 < min(result["alone"][name]) <= max(result["alone"][name]) <= most
    assert min(result["cpu_seconds"]) > 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    wanted = [[step, workers] for step in steps for workers in "01"]
    assert [row.split(" | ")[3:5] for row in rows] == wanted


class SlowLoader:
    """Takes so long for a batch on the clock that it turns."""

    def __init__(self, now, seconds):
        self.now, self.seconds = now, seconds

    def epoch(self, epoch):
        for _ in range(bench_pipeline.WARM_UP + 4):
            self.now[0] += self.seconds
            values = torch.zeros(8, dtype=torch.int64)
            yield Batch(values, values, values, values, ())


@pytest.mark.parametrize(
    ("loads", "steps", "rate", "waited"), [(3.0, 1.0, 2.0, 0.75), (0.0, 2.0, 4.0, 0.0)]
)
def test_the_share_of_time_waited_is_that_of_the_loader(monkeypatch, loads, steps, rate, waited):
    now = [0.0]
    for module in (bench_pipeline, progress):
        assert module.time is time
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def step(batch):
        now[0] += steps

    took = bench_pipeline.time_epoch(SlowLoader(now, loads), 0, step, CPU)
    assert took == {"rate": rate, "waited": waited}
    batch = next(SlowLoader(now, 0.0).epoch(0))
    assert bench_pipeline.time_steps([batch] * 6, step, CPU) == 8 / steps


def test_so_many_workers_are_needed_as_have_the_cpu_time():
    result = {"cpu_seconds": [0.5, 0.04, 0.03]}  # the median counts
    assert [bench_pipeline.workers_for(result, rate) for rate in (20, 25, 26, 100)] == [1, 1, 2, 4]


def test_the_videos_take_turns_in_the_list(tmp_path):
    videos = [tmp_path / "a.avi", tmp_path / "b.avi"]
    bench_pipeline.write_list(tmp_path, videos, 3)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    assert lines == [f"{videos[0]} 0", f"{videos[1]} 0", f"{videos[0]} 0"]


@pytest.mark.parametrize("wrong", ["--repeats 1", "--steps 0", "--device-rate 20 0", "--asleep -1"])
def test_what_cannot_be_measured_is_refused(wrong):
    args = bench.parse_args(["pipeline", *wrong.split()])
    with pytest.raises(ValueError, match="--repeats must be 2 or more"):
        next(bench_pipeline.measure(args))
