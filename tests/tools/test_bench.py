import json
from fractions import Fraction
from pathlib import Path

import bench
import bench_decode
import bench_step
import numpy as np
import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"
SMALL = {
    "hmdb": ("HMDB-51", "avi", "mpeg4", (240, 320), Fraction(30), 40, 12, 800_000),
    "finegym": ("FineGym", "mp4", "libx264", (270, 480), Fraction(25), 40, 20, 800_000),
}


@pytest.fixture(scope="module", autouse=True)
def _small():
    """Make small videos and short clips."""
    forms = {name: bench_decode.Format(*form) for name, form in SMALL.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_decode, "FORMATS", forms)
        patch.setattr(bench_decode, "SAMPLINGS", {"4x4": (4, 4)})
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {kind: bench_decode.make_videos(folder, kind, 1) for kind in SMALL}


@pytest.mark.parametrize("kind", SMALL)
def test_the_plain_way_and_ours_cut_the_same_clip(kind, videos):
    rng = np.random.default_rng(0)
    for _ in range(4):
        wanted = bench_decode.draw(str(videos[kind][0]), "4x4", rng)
        plain, ours = bench_decode.plain_clip(wanted), bench_decode.our_clip(wanted, "pyav")
        assert plain.shape == ours.shape == (3, 4, 224, 224)
        difference = plain * bench_decode.STD + bench_decode.MEAN - ours.float() / 255
        assert difference.abs().mean() < 0.03  # the scalers differ, and a frame by rounding


def test_the_floor_decodes_from_the_key_frame_to_the_last_frame(videos):
    path = str(videos["hmdb"][0])  # a key frame every 12
    late = bench_decode.Draw(path, 1.0, 4, 4, 256, 0.5)
    numbers = bench_decode.numbers_of(late)
    assert bench_decode.floor_of_clip(late) == numbers[-1] + 1 - numbers[0] // 12 * 12


def test_videos_that_are_there_are_not_made_again(videos, monkeypatch):
    monkeypatch.setattr(bench_decode, "_encode", None)
    assert bench_decode.make_videos(videos["hmdb"][0].parent, "hmdb", 1) == videos["hmdb"]


def test_tables_and_lines_of_json_tell_the_same(videos, tmp_path, capsys):
    folder, out = str(videos["hmdb"][0].parent), tmp_path / "out.jsonl"
    common = ["--folder", folder, "--videos", "1", "--formats", "hmdb", "--out", str(out)]
    bench.main(["decode", "--clips", "3", "--samplings", "4x4", *common])
    bench.main(["loader", "--clips", "24", "--samplings", "4x4", "--workers", "0", *common])
    shown = capsys.readouterr().out
    decode, loader = (json.loads(line) for line in out.read_text().splitlines())
    assert set(decode["cpu_ms"]) == {"plain", "pyav", "floor", "index"}
    assert f"| hmdb | 4x4 | {decode['cpu_ms']['plain']['median']:.1f} (" in shown
    assert f"| hmdb | 4x4 | 0 | {loader['clips_per_second']['plain']:.1f} |" in shown
    assert decode["machine"]["av"]


TINY = ["TIMESFORMER.EMBED_DIM", "24", "TIMESFORMER.NUM_HEADS", "2", "TIMESFORMER.DEPTH", "2"]


def test_a_step_is_measured_in_every_way_and_the_table_tells_what_is_kept(tmp_path, capsys):
    recipe, out = TOOLS.parent / "configs" / "MotionShapes" / "X3D_XS.yaml", tmp_path / "out.jsonl"
    command = ["step", "--cfg", str(recipe), "--batch", "2", "--repeats", "2", "--device", "cpu"]
    options = ["MODEL.NAME", "timesformer", "DATA.TRAIN_CROP_SIZE", "32", *TINY]
    bench.main([*command, "--out", str(out), *options])
    (result,) = (json.loads(line) for line in out.read_text().splitlines())
    assert list(result["ways"]) == ["plain", "ours", "plain + prompt", "ours + prompt"]
    for name, way in result["ways"].items():
        assert ("anomaly mode" in way["details"]) == name.startswith("plain")
        assert way["peak_bytes"] > 0
        for step in way["steps"]:
            assert step["cpu"] > 0
            assert 0 < step["forward"] + step["backward"] + step["optimizer"] < step["total"]
            assert (step["prompt"] > 0) == ("prompt" in name)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| X3D_XS")]
    assert [row.split(" | ")[2].split(" (")[0] for row in rows] == list(result["ways"])


def test_attention_written_out_is_the_attention_of_torch():
    parts = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    wanted = torch.nn.functional.scaled_dot_product_attention(*parts)
    torch.testing.assert_close(bench_step.written_out_attention(*parts), wanted)
