import json
from fractions import Fraction
from functools import partial
from pathlib import Path

import bench
import bench_decode
import bench_scale
import pytest
import torch
import torch.distributed as dist

from tests.conftest import ROOT
from vmp import engine
from vmp.config import load_cfg
from vmp.data import VideoReader
from vmp.data.build import build_test_view
from vmp.data.clips import ClipDataset
from vmp.data.records import VideoRecord
from vmp.engine.build import build_learner
from vmp.engine.step import train_step

RECIPE = str(ROOT / "configs" / "MotionShapes" / "TimeSformer.yaml")
TINY = ["TIMESFORMER.EMBED_DIM", "24", "TIMESFORMER.NUM_HEADS", "2", "TIMESFORMER.DEPTH", "2"]


def run(part, *arguments):
    bench.main(["scale", "--part", part, "--cfg", RECIPE, "--repeats", "2", *arguments, *TINY])


def test_a_step_is_measured_along_every_axis_and_drawn(tmp_path, capsys, monkeypatch):
    axes = {"batch": (1, 2, 3, 6), "frames": (2, 3, 4, 5), "crop": (16, 24, 32, 40)}
    monkeypatch.setattr(bench_scale, "AXES", axes)
    monkeypatch.setattr(bench_scale, "POINT", {"batch": 1, "frames": 2, "crop": 16})
    out, plot = tmp_path / "out.jsonl", tmp_path / "plot.png"
    run("step", "--out", str(out), "--plot", str(plot))
    (result,) = (json.loads(line) for line in out.read_text().splitlines())
    shown = capsys.readouterr().out
    for axis, points in result["axes"].items():
        assert [point["size"] for point in points] == list(axes[axis])
        peaks = [point["peak_bytes"] for point in points]
        assert peaks == sorted(peaks)
        assert peaks[0] < peaks[-1]
        assert f"| TimeSformer | {axis} | {axes[axis][0]}: " in shown
        assert f", {peaks[-1] / 2**20:.0f} MiB |" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    panels = bench_scale.draw([result]).axes
    assert [panel.get_xlabel() for panel in panels[3:]] == list(bench_scale.LABELS.values())
    # the quartiles of two are beyond them: the median alone is a number to compare
    median = sum(result["axes"]["crop"][0]["seconds"]) / 2
    assert panels[2].get_lines()[0].get_ydata()[0] == pytest.approx(1000 * median)


def test_a_plot_needs_the_file_that_it_is_of():
    with pytest.raises(ValueError, match="--out"):
        run("step", "--plot", "plot.png")


def keep_gradients(folder):
    """Write, in each of two processes, the gradients that either way of summing gives."""
    settings = bench_scale._point(2, 2, 16)
    cfg = load_cfg(RECIPE, [*TINY, *settings])
    kept = {}
    for name in ("ddp", "after", "not summed"):
        learner = build_learner(cfg)
        exchange = bench_scale.Exchange(learner) if name != "ddp" else None
        shape = (2, 3, learner.model.clip_frames, 16, 16)
        batch = bench_scale.bench_step.random_batch(shape, learner.device)
        batch = batch._replace(clip=batch.clip + dist.get_rank())  # each rank its own

        def keep(*_, name=name, model=learner.model):
            kept[name] = [parameter.grad.clone() for parameter in model.parameters()]

        learner.optimizer.register_step_pre_hook(keep)  # after that of Exchange
        if exchange is None:
            train_step(learner, [batch], epoch=0.0)
        else:
            exchange.step(batch, summing=name == "after")
    torch.save(kept, Path(folder, f"{dist.get_rank()}.pt"))


@pytest.mark.dist
def test_summed_after_backward_the_gradients_are_those_of_ddp(tmp_path):
    engine.launch(keep_gradients, str(tmp_path), num_processes=2, timeout=60)
    zero, one = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for gradients in (zero, one):
        torch.testing.assert_close(gradients["after"], gradients["ddp"])
    halves = zip(zero["not summed"], one["not summed"], strict=True)
    torch.testing.assert_close([(a + b) / 2 for a, b in halves], zero["ddp"])
    assert any((a != b).any() for a, b in zip(zero["not summed"], one["not summed"], strict=True))


@pytest.mark.dist
def test_two_processes_are_measured_against_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench_scale, "RANKS_POINT", {"batch": 2, "frames": 2, "crop": 16})
    out = tmp_path / "out.jsonl"
    run("ranks", "--out", str(out))
    (result,) = (json.loads(line) for line in out.read_text().splitlines())
    assert all(len(values) == 2 and min(values) > 0 for values in result["seconds"].values())
    assert len(result["seconds"]) == 5
    row = capsys.readouterr().out.splitlines()[-2]
    assert row.startswith(f"| TimeSformer | {result['gradient_bytes'] / 2**20:.0f} | ")


def test_the_efficiency_is_that_of_rounds_and_the_hidden_share_that_of_what_the_sum_takes():
    ways = (bench_scale.ALONE, bench_scale.SPLIT, bench_scale.BOTH)
    ways += (bench_scale.AFTER, bench_scale.WITHOUT)
    seconds = {way: [value] * 2 for way, value in zip(ways, (8, 5, 10, 11, 9), strict=True)}
    (row,) = bench_scale.ranks_rows({"cfg": "X", "gradient_bytes": 2**20, "seconds": seconds})
    shares = [cell.split(" ")[0] for cell in row.split(" | ")[-4:]]
    assert shares == ["80", "80", "89", "50"]


@pytest.fixture
def few_views(monkeypatch):
    form = bench_decode.Format("HMDB-51", "avi", "mpeg4", (64, 80), Fraction(30), 30, 12, 800_000)
    monkeypatch.setattr(bench_decode, "FORMATS", {"hmdb": form})
    monkeypatch.setattr(bench_scale, "CLIPS", 2)


def test_views_that_share_a_reader_are_the_same_and_open_the_video_once(few_views, tmp_path):
    (video,) = bench_decode.make_videos(tmp_path, "hmdb", 1)
    cfg = load_cfg(RECIPE, TINY)
    pick_frames, transform = build_test_view(cfg, 8, num_clips=2, num_crops=3)
    opened = []

    def open_video(path):
        opened.append(path)
        return VideoReader(path)

    records = [VideoRecord(str(video), 0)]
    options = {"num_views": 6, "pick_frames": pick_frames, "transform": transform, "seed": 0}
    make = partial(ClipDataset, records, open_video=open_video, **options)
    together = list(bench_scale._views(make, share=True))
    assert len(opened) == 1
    alone = list(bench_scale._views(make, share=False))
    assert len(opened) == 1 + 6
    assert [sample.view for sample in together] == list(range(6))
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.clip, other.clip)


def test_every_view_goes_through_the_network(few_views, tmp_path, capsys, monkeypatch):
    shapes = []
    build = bench_scale.build_model

    def built(cfg):
        model = build(cfg)
        model.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
        return model

    monkeypatch.setattr(bench_scale, "build_model", built)
    out = tmp_path / "out.jsonl"
    run("views", "--out", str(out))
    assert shapes == [(6, 3, 8, 48, 48)] * 6  # two ways, three rounds, six views at once
    (line,) = (json.loads(line) for line in out.read_text().splitlines())
    for way in line["formats"]["hmdb"].values():
        pairs = zip(way["decoded"], way["evaluated"], strict=True)
        assert all(0 < decoded < evaluated for decoded, evaluated in pairs)
    assert capsys.readouterr().out.splitlines()[-2].startswith("| TimeSformer | hmdb | ")
