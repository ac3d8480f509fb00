from pathlib import Path

import av
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from tests.conftest import load_module
from vmp.config import get_cfg
from vmp.models import build_model

TOOL = Path(__file__).resolve().parents[2] / "tools" / "visualize.py"


@pytest.fixture(scope="module")
def tool():
    yield from load_module("visualize", TOOL)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Return a video of 20 frames in which a bright square moves right."""
    path = tmp_path_factory.mktemp("video") / "moving.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width, stream.height = 96, 64
        for number in range(20):
            picture = np.full((64, 96, 3), 60, dtype=np.uint8)
            picture[20:40, 4 * number : 4 * number + 16] = 220
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def drawn(tool, monkeypatch, arguments):
    """Run the tool; return the prompt and the clip it drew."""
    seen = []
    real = tool.prompt_panel

    def spy(prompt, clip, **options):
        seen.append((prompt, clip))
        return real(prompt, clip, **options)

    monkeypatch.setattr(tool, "prompt_panel", spy)
    tool.main([str(argument) for argument in arguments])
    return seen[0]


def test_slope_and_shift_are_solved_for_m_and_n(tool):
    for a, b in ((11.04, -0.59), (23.46, 0.032), (50.0, 0.0), (9.2, 0.5)):
        found = tool.fixed_prompt(*tool.solve(a, b)).power_norm.describe()
        assert found["a"].item() == pytest.approx(a, rel=1e-5)
        assert found["b"].item() == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize(("a", "b"), [(9.0, 0.0), (50.1, 0.0), (20.0, 0.6), (0.0, 0.0)])
def test_what_no_m_and_n_give_is_refused(tool, a, b):
    with pytest.raises(ValueError, match="at most 50"):
        tool.solve(a, b)


def test_a_picture_is_written_for_given_numbers(tool, video, tmp_path, monkeypatch):
    out = tmp_path / "panel.png"
    arguments = ["--video", video, "--out", out, "--a", 11.04, "--b", -0.59, "--short-side", 48]
    prompt, clip = drawn(tool, monkeypatch, [*arguments, "--frames", 4, "--stride", 3])
    assert clip.shape == (3, 5, 48, 72)
    assert clip.dtype == torch.uint8
    assert prompt.power_norm.describe()["a"].item() == pytest.approx(11.04, rel=1e-5)
    left = [
        (frame.float().amax(dim=0).amax(dim=0) > 150).nonzero().min() for frame in clip.unbind(1)
    ]
    assert np.diff(left) == pytest.approx(12 * 48 / 64, abs=1.5)  # 3 frames of 4 pixels
    picture = imread(out)
    assert picture.shape[0] > 400
    assert picture[..., :3].std() > 0.1


@pytest.mark.parametrize(("pathway", "frames"), [(0, 3), (1, 9)])
def test_a_trained_prompt_sees_the_frames_its_pathway_sees(
    tool, video, tmp_path, monkeypatch, pathway, frames
):
    text = "MODEL: {NAME: slowfast, NUM_CLASSES: 6}\nSLOWFAST: {DEPTH: 18, WIDTH: 8}\n"
    text += "DATA: {NUM_FRAMES: 8, SAMPLING_RATE: 2, TRAIN_CROP_SIZE: 64, TEST_CROP_SIZE: 64}\n"
    text += "PROMPT: {ENABLE: True, PATHWAYS: [0, 1]}\n"
    (tmp_path / "config.yaml").write_text(text)
    cfg = get_cfg()
    cfg.merge_from_file(str(tmp_path / "config.yaml"))
    trained = build_model(cfg)
    torch.save({"model": trained.state_dict()}, tmp_path / "epoch.pth")
    arguments = ["--video", video, "--out", tmp_path / "panel.png", "--short-side", 64]
    arguments += ["--cfg", tmp_path / "config.yaml", "--checkpoint", tmp_path / "epoch.pth"]
    prompt, clip = drawn(tool, monkeypatch, [*arguments, "--pathway", pathway])
    assert prompt.power_norm.m == trained.prompts[str(pathway)].power_norm.m
    assert clip.shape == (3, frames, 64, 96)
    assert (tmp_path / "panel.png").stat().st_size > 10_000


def test_a_checkpoint_without_a_prompt_is_refused(tool, tmp_path):
    cfg = get_cfg()
    cfg.MODEL.NUM_CLASSES, cfg.DATA.TRAIN_CROP_SIZE = 6, 64
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "baseline.pth")
    cfg.PROMPT.ENABLE = True
    with pytest.raises(ValueError, match="no prompt to draw"):
        tool.build_trained(cfg, str(tmp_path / "baseline.pth"))


@pytest.mark.parametrize("extra", [["--a", "12"], ["--cfg", "x.yaml"], ["--start", "-1"]])
def test_arguments_that_do_not_go_together_are_refused(tool, extra, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["--video", "v", "--out", "o", *extra])
    assert "--" in capsys.readouterr().err


@pytest.mark.data
def test_a_real_clip_can_be_drawn(tool, shared, tmp_path):
    clip = shared / "data" / "ut_interaction" / "segmented_set1" / "0_1_4.avi"
    tool.main(["--video", str(clip), "--start", "40", "--out", str(tmp_path / "panel.png")])
    assert imread(tmp_path / "panel.png")[..., :3].std() > 0.1
