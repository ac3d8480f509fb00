import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import visualize_clip
import visualize_prompt
import visualize_trained
from matplotlib.image import imread
from visualize import COMMANDS, main, parse_args

from vmp.config import get_cfg, load_cfg
from vmp.models import build_model
from vmp.prompts import POWER_NORMS
from vmp.utils.cli import run_cli
from vmp.utils.logging import RunLog

TOOL = Path(__file__).parents[2] / "tools" / "visualize.py"
SLOWFAST = "MODEL: {NAME: slowfast, NUM_CLASSES: 6}\nSLOWFAST: {DEPTH: 18, WIDTH: 8}\n"
SLOWFAST += "DATA: {NUM_FRAMES: 8, SAMPLING_RATE: 2, TARGET_FPS: 0}\n"
SLOWFAST += "PROMPT: {ENABLE: True, PATHWAYS: [0, 1]}\n"


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


def make_run(folder, text=SLOWFAST):
    """Write config, checkpoint and log of a run; return its model."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    model = build_model(load_cfg(folder / "config.yaml"))
    torch.save({"model": model.state_dict()}, folder / "checkpoints" / "epoch_00001.pth")
    log = RunLog(folder, enabled=True, tensorboard=False)
    values = {
        pathway: {name: float(value) for name, value in prompt.power_norm.describe().items()}
        for pathway, prompt in model.prompts.items()
    }
    log.write("train", 1, {"prompt": values, "epoch": 1.0})
    log.close()
    (folder / "config.yaml").write_text(load_cfg(folder / "config.yaml").dump())
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the folder of a run with a prompt before both pathways, and its model."""
    folder = tmp_path_factory.mktemp("runs") / "slowfast"
    return folder, make_run(folder)


def call(*arguments):
    main([str(argument) for argument in arguments])


@pytest.fixture
def drawn(monkeypatch):
    """Return a function that runs the tool and returns the prompts and the clip it drew."""
    seen = []
    real = visualize_prompt.motion_rows

    def spy(prompts, clip, **options):
        seen.append((prompts, clip))
        return real(prompts, clip, **options)

    def run_tool(*arguments):
        call(*arguments)
        return seen[-1]

    monkeypatch.setattr(visualize_prompt, "motion_rows", spy)
    return run_tool


def test_slope_and_shift_are_solved_for_m_and_n():
    for a, b in ((11.04, -0.59), (23.46, 0.032), (50.0, 0.0), (9.2, 0.5)):
        found = visualize_clip.fixed_norm(*visualize_clip.solve(a, b)).describe()
        assert found["a"].item() == pytest.approx(a, rel=1e-5)
        assert found["b"].item() == pytest.approx(b, abs=1e-5)


@pytest.mark.parametrize(("a", "b"), [(9.0, 0.0), (50.1, 0.0), (20.0, 0.6), (0.0, 0.0)])
def test_what_no_m_and_n_give_is_refused(a, b):
    with pytest.raises(ValueError, match="at most 50"):
        visualize_clip.solve(a, b)


def test_a_picture_is_written_for_given_numbers(video, tmp_path, drawn):
    out = tmp_path / "panel.png"
    arguments = ["--video", video, "--out", out, "--a", 11.04, "--b", -0.59, "--short-side", 48]
    ((_, prompt),), clip = drawn("panels", *arguments, "--frames", 4, "--stride", 3)
    assert clip.shape == (3, 5, 48, 72)
    assert clip.dtype == torch.uint8
    assert prompt.power_norm.describe()["a"].item() == pytest.approx(11.04, rel=1e-5)
    left = [
        (frame.float().amax(dim=0).amax(dim=0) > 150).nonzero().min() for frame in clip.unbind(1)
    ]
    assert np.diff(left) == pytest.approx(12 * 48 / 64, abs=1.5)  # 3 frames of 4 pixels
    picture = imread(out)
    assert picture.shape[0] > 300
    assert picture[..., :3].std() > 0.1


def test_without_a_command_it_is_panels(video, tmp_path, drawn):
    prompts, _ = drawn("--video", video, "--out", tmp_path / "panel.png", "--rows", 2)
    (_, prompt), *others = prompts
    assert not others
    assert prompt.power_norm.describe()["a"].item() == pytest.approx(23.46, abs=0.01)
    assert (tmp_path / "panel.png").is_file()


def test_several_numbers_are_drawn_below_each_other_in_all_formats(video, tmp_path, drawn):
    outs = [tmp_path / f"panel.{ending}" for ending in ("png", "pdf", "mp4")]
    numbers = ["--m", 0.257, 1.05, "--n", 0.053, -2.67]
    prompts, _ = drawn("panels", "--video", video, "--out", *outs, *numbers, "--frames", 6)
    found = [prompt.power_norm.describe()["b"].item() for _, prompt in prompts]
    assert found == pytest.approx([0.0318, -0.594], abs=1e-3)
    assert outs[0].read_bytes().startswith(b"\x89PNG")
    assert outs[1].read_bytes().startswith(b"%PDF")
    with av.open(str(outs[2])) as container:
        assert container.streams.video[0].average_rate == 15  # every second of 30 a second
        assert sum(1 for _ in container.decode(video=0)) == 6


def test_compare_draws_every_power_normalisation(video, tmp_path, drawn):
    numbers = ["--a", 11.04, "--b", -0.59]
    prompts, _ = drawn("compare", "--video", video, "--out", tmp_path / "x.png", *numbers)
    named = {type(prompt.power_norm).__name__: prompt.power_norm for _, prompt in prompts}
    assert set(named) == {name for name, _ in POWER_NORMS} - {"identity"}
    assert named["sigmoid"].describe()["a"].item() == pytest.approx(11.04, rel=1e-5)


@pytest.mark.parametrize(
    ("pathway", "numbers"), [(0, [0, 8, 17]), (1, [0, 2, 4, 6, 8, 10, 12, 14, 17])]
)
def test_a_trained_prompt_sees_the_frames_its_pathway_sees(
    run, video, tmp_path, drawn, monkeypatch, pathway, numbers
):
    read = []
    real = visualize_prompt.read_clip

    def spy(video, numbers, short_side):
        read.append(list(numbers))
        return real(video, numbers, short_side)

    monkeypatch.setattr(visualize_prompt, "read_clip", spy)
    folder, trained = run
    out = tmp_path / "panel.png"
    arguments = ["--video", video, "--out", out, "--short-side", 64, "--pathway", pathway]
    ((name, prompt),), clip = drawn("panels", *arguments, "--checkpoint", folder)
    assert prompt.power_norm.m == trained.prompts[str(pathway)].power_norm.m
    assert name == "slowfast (λ = 0)"
    assert read == [numbers]
    assert clip.shape == (3, len(numbers), 64, 96)
    assert out.stat().st_size > 10_000


def test_a_checkpoint_may_be_named_with_its_config(run, video, tmp_path, drawn):
    folder, trained = run
    moved = tmp_path / "weights.pth"
    moved.write_bytes((folder / "checkpoints" / "epoch_00001.pth").read_bytes())
    arguments = ["--video", video, "--out", tmp_path / "panel.png"]
    with pytest.raises(ValueError, match="name one with --cfg"):
        drawn("panels", *arguments, "--checkpoint", moved)
    trained_by = ["--checkpoint", moved, "--cfg", folder / "config.yaml", "--pathway", 1]
    ((_, prompt),), _ = drawn("panels", *arguments, *trained_by)
    assert prompt.power_norm.n == trained.prompts["1"].power_norm.n


def test_prompts_that_see_other_frames_need_frames_given(run, video, tmp_path, drawn):
    other = tmp_path / "other"
    make_run(other, SLOWFAST.replace("SAMPLING_RATE: 2", "SAMPLING_RATE: 1"))
    arguments = ["--video", video, "--out", tmp_path / "x.png", "--checkpoint", run[0], other]
    with pytest.raises(ValueError, match="give --frames and --stride"):
        drawn("panels", *arguments)
    prompts, clip = drawn("panels", *arguments, "--frames", 3, "--stride", 1)
    assert [name for name, _ in prompts] == ["slowfast (λ = 0)", "other (λ = 0)"]
    assert clip.shape[1] == 4


def test_a_checkpoint_without_a_prompt_is_refused(tmp_path):
    cfg = get_cfg()
    cfg.MODEL.NUM_CLASSES, cfg.DATA.TRAIN_CROP_SIZE = 6, 64
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "baseline.pth")
    cfg.PROMPT.ENABLE = True
    with pytest.raises(ValueError, match="no prompt to draw"):
        visualize_trained.load_model(build_model(cfg), tmp_path / "baseline.pth")


def test_plots_are_written(run, video, tmp_path):
    call("curves", "--out", tmp_path / "curves.png", tmp_path / "curves.pdf", "--dpi", 50)
    call("surfaces", "--out", tmp_path / "blob.png")
    call("surfaces", "--out", tmp_path / "clip.png", "--video", video, "--start", 3)
    call("history", run[0], "--out", tmp_path / "history.png")
    for path in tmp_path.glob("*.png"):
        assert imread(path)[..., :3].std() > 0.05
    assert len(list(tmp_path.iterdir())) == 5
    assert imread(tmp_path / "curves.png").shape[:2] == (360, 480)
    assert imread(tmp_path / "blob.png").shape == imread(tmp_path / "clip.png").shape
    assert (imread(tmp_path / "blob.png") != imread(tmp_path / "clip.png")).any()


WRONG = {
    "no video": (["panels", "--video", "absent.mp4", "--out", "x.png"], "absent.mp4"),
    "a folder for a video": (["compare", "--video", ".", "--out", "x.png"], "not a regular file"),
    "no video in it": (["panels", "--video", "{text}", "--out", "x.png"], "Invalid data"),
    "past the end": (
        ["surfaces", "--video", "{video}", "--start", "900", "--out", "x.png"],
        "it has 20; lower --start",
    ),
    "no run": (["history", "absent", "--out", "x.png"], "name the OUTPUT_DIR"),
    "a file for a run": (["history", "{text}", "--out", "x.png"], "it is no folder"),
    "a folder that is no run": (["history", ".", "--out", "x.png"], "no log.jsonl"),
    "no checkpoint": (
        ["panels", "--video", "{video}", "--out", "x.png", "--checkpoint", "."],
        "there is no checkpoint in it",
    ),
    "no such checkpoint": (
        ["panels", "--video", "{video}", "--out", "x.png", "--checkpoint", "absent.pth"],
        "it does not exist",
    ),
    "no pathway": (
        [
            "panels",
            "--video",
            "{video}",
            "--out",
            "x.png",
            "--checkpoint",
            "{run}",
            "--pathway",
            "2",
        ],
        "give --pathway one of 0, 1",
    ),
    "no slope": (
        ["panels", "--video", "{video}", "--out", "x.png", "--a", "90", "--b", "0"],
        "at most 50",
    ),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_a_user_gets_wrong_is_one_line_and_writes_nothing(
    case, run, video, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no video")
    arguments, message = WRONG[case]
    places = {"video": video, "text": "notes.txt", "run": run[0]}
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as caught:
        run_cli(lambda: main([argument.format(**places) for argument in arguments]))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


PANELS = ["panels", "--video", "v", "--out", "o.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*PANELS, "--a", "12"], "--a and --b go together"),
        ([*PANELS, "--m", "1", "2", "--n", "1"], "equally many"),
        ([*PANELS, "--m", "1", "--n", "1", "--checkpoint", "x"], "one of the three"),
        ([*PANELS, "--cfg", "x.yaml"], "give that too"),
        ([*PANELS, "--start", "-1"], "--start is at least 0"),
        ([*PANELS, "--frames", "1"], "--frames is at least 2"),
        ([*PANELS, "--short-side", "0"], "--short-side is at least 1"),
        (["panels", "--video", "v", "--out", "o.gif"], "must end in one of"),
        (["curves", "--out", "o.mp4"], "must end in one of"),
        (["curves", "--out", "{folder}"], "is a folder"),
        (["compare", "--video", "v", "--out", "o.png", "--a", "9", "10", "--b", "0", "0"], "10"),
        (["paint", "--out", "o.png"], "curves"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message, tmp_path, capsys):
    folder = tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(SystemExit):
        parse_args([argument.format(folder=folder) for argument in arguments])
    assert message in capsys.readouterr().err


def test_help_and_wrong_arguments_come_before_torch_and_matplotlib():
    program = (
        "import sys, visualize\n"
        "try: visualize.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'matplotlib', 'av'} & set(sys.modules)"
    )
    for arguments in (["--help"], *([command, "--help"] for command in COMMANDS), ["curves"]):
        command = [sys.executable, "-c", program, *arguments]
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            env={"PYTHONPATH": f"{TOOL.parent}:{TOOL.parents[1]}"},
        )


@pytest.mark.data
def test_a_real_clip_can_be_drawn(shared, tmp_path):
    clip = shared / "data" / "ut_interaction" / "segmented_set1" / "0_1_4.avi"
    call("--video", clip, "--start", 40, "--out", tmp_path / "panel.png")
    assert imread(tmp_path / "panel.png")[..., :3].std() > 0.1
