"""tools/demo.py: what it prints and writes for a file, a folder, a pipe and a camera."""

import io
import json
import sys

import av
import demo_panel
import demo_run
import numpy as np
import pytest
import torch
from demo import main, part_words

from tests.conftest import ROOT
from tests.data.test_stream import FRAMES, Pipe, make_video
from vmp.config import load_cfg
from vmp.data.stream import open_camera, open_file
from vmp.engine.predictor import Predictor, build_predictor
from vmp.models import build_model
from vmp.prompts import MotionPrompt
from vmp.utils.cli import run_cli
from vmp.utils.files import write_text

pytestmark = pytest.mark.usefixtures("_one_thread")
NAMES = ("run", "jump", "sit")


def make_run(folder, *opts):
    """Write what the tool needs of a run: config, a checkpoint, and the names its test stored."""
    base = ROOT / "configs" / "base"
    recipe = folder / "recipe.yaml"
    write_text(recipe, f"_BASE_: [{base}/X3D_XS.yaml, {base}/MotionShapes_CPU.yaml]\n")
    words = "TRAIN.DATASET csv MODEL.NUM_CLASSES 3 X3D.WIDTH_FACTOR 1.0 X3D.DEPTH_FACTOR 0.2"
    words += " X3D.DIM_C5 64 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 DATA.NUM_FRAMES 4"
    words += " DATA.TRAIN_JITTER_SCALES [32,32] DATA.SAMPLING_RATE 2 DATA.TARGET_FPS 0"
    data = ["DATA.PATH_TO_DATA_DIR", str(folder)]
    cfg = load_cfg(recipe, [*words.split(), *data, *opts])
    torch.manual_seed(0)
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "checkpoints" / "epoch_00001.pth")
    write_text(folder / "config.yaml", cfg.dump())
    np.savez(folder / "predictions.npz", class_names=np.array(NAMES))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    # attention to what gets brighter, none to what stays
    numbers = ("PROMPT.SIGMOID.M", "1.0", "PROMPT.SIGMOID.N", "1.0")
    return make_run(tmp_path_factory.mktemp("run"), "PROMPT.ENABLE", "True", *numbers)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("baseline"))


def call(run, *words):
    main(["--checkpoint", str(run), "--device", "cpu", *map(str, words)])


def predictions_of(path):
    """Return the predictions of the only video in a file of --json."""
    (video,) = json.loads(path.read_text())["videos"]
    return video["predictions"]


def packets_of(path):
    """Return the packets of the sound of a file: (seconds, bytes)."""
    with av.open(str(path)) as container:
        packets = [each for each in container.demux(audio=0) if each.pts is not None]
        return [(float(each.pts * each.time_base), bytes(each)) for each in packets]


def test_a_file_is_predicted_in_windows_as_text_and_json(run, tmp_path, capsys):
    video, out = make_video(tmp_path / "some clip.mp4"), tmp_path / "out.json"
    call(run, video, "--json", out, "--topk", 2, "--stride", 0.24)
    content = json.loads(out.read_text())
    assert content["checkpoint"] == str(run / "checkpoints" / "epoch_00001.pth")
    assert content["classes"] == list(NAMES)
    assert content["window"] == "sliding"
    assert content["videos"][0]["video"] == str(video)
    found = predictions_of(out)
    predictor = build_predictor(load_cfg(run / "config.yaml"), content["checkpoint"])
    wanted = list(predictor.slide(video, 0.24))
    assert [(each["start"], each["stop"]) for each in found] == [each[1:] for each in wanted]
    assert len(found) == 4  # of 10 frames, 6 apart, and one that ends with the 24th
    for each, prediction in zip(found, wanted, strict=True):
        likeliest = prediction.scores.argsort(descending=True)[:2].tolist()
        assert [top["label"] for top in each["top"]] == likeliest
        assert [top["name"] for top in each["top"]] == [NAMES[label] for label in likeliest]
        shares = [top["probability"] for top in each["top"]]
        assert shares == prediction.scores[likeliest].tolist()
    printed = capsys.readouterr().out
    top = found[1]["top"][0]
    assert f"0.2 to 0.6 s  {top['name']} {100 * top['probability']:.1f} %," in printed


def test_a_whole_video_has_one_prediction(run, tmp_path):
    video, out = make_video(tmp_path / "clip.mp4"), tmp_path / "out.json"
    call(run, video, "--json", out, "--window", "whole", "TEST.NUM_ENSEMBLE_VIEWS", 3)
    (found,) = predictions_of(out)
    opts = ["TEST.NUM_ENSEMBLE_VIEWS", "3"]
    checkpoint = run / "checkpoints" / "epoch_00001.pth"
    prediction = build_predictor(load_cfg(run / "config.yaml", opts), checkpoint).whole(video)
    assert (found["start"], found["stop"]) == (0, FRAMES / 25)
    assert found["top"][0]["probability"] == prediction.scores.max().item()


def test_a_movie_has_the_frames_and_the_rate_of_the_video_and_its_sound_untouched(run, tmp_path):
    video, out = make_video(tmp_path / "clip.mp4", sound="aac"), tmp_path / "out.mp4"
    call(run, video, "--out", out)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 25
        assert [float(frame.time) for frame in container.decode(stream)] == pytest.approx(
            [number / 25 for number in range(FRAMES)]
        )
    assert [piece for _, piece in packets_of(out)] == [piece for _, piece in packets_of(video)]
    times = [[time for time, _ in packets_of(path)] for path in (out, video)]
    assert times[0] == pytest.approx(times[1], abs=1e-3)


@pytest.mark.parametrize("kind", ["mkv", "avi"])
def test_sound_that_mp4_players_do_not_take_is_encoded(kind, run, tmp_path):
    video, out = tmp_path / f"clip.{kind}", tmp_path / "out.mp4"
    make_video(video, kind, sound="pcm_s16le")
    call(run, video, "--out", out)
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == 25
        assert container.streams.audio[0].codec_context.name == "aac"
        samples = np.concatenate([each.to_ndarray()[0] for each in container.decode(audio=0)])
    assert len(samples) == pytest.approx(0.8 * 48000, abs=2100)
    middle = samples[4000:-4000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * 48000 / len(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.3, abs=0.02)


def frame_of(path, number):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return frames[number].astype(int)


def test_a_movie_shows_frame_attention_and_prompt_side_by_side(run, tmp_path):
    video, out = make_video(tmp_path / "clip.mp4"), tmp_path / "out.mp4"
    call(run, video, "--out", out)
    shown = frame_of(out, 12)
    panel = demo_panel.Panel(("frame", "attention", "prompt"), (48, 64), 3)
    height, width = panel.cell
    assert (height, width) == (240, 320)
    assert shown.shape == (demo_panel.LINE + height + 4 * demo_panel.LINE + 16, panel.width, 3)
    cells = [
        shown[demo_panel.LINE :][:height, demo_panel.GAP + place * (width + demo_panel.GAP) :][
            :, :width
        ]
        for place in range(3)
    ]
    with open_file(str(video)) as stream:
        frames = [each.frame.to_ndarray(format="rgb24") for each in stream.frames()]
    assert np.abs(cells[0][::5, ::5] - frames[12]).mean() < 12  # scaled and coded again
    assert np.abs(cells[0][::5, ::5] - frames[9]).mean() > 20
    # both frames are white at the left: no attention, and the prompt is the mean of all pixels
    still = (slice(None), slice(0, 60))
    assert np.abs(cells[2][still] - 0.45 * 255).max() < 20
    assert cells[2].std() > cells[2][still].std() + 10
    red = cells[1][..., 0] - cells[1][..., 2]
    assert red[still].max() < 20
    assert red.max() > 60
    bar = shown[-3 * demo_panel.LINE - 16 : -2 * demo_panel.LINE - 16]  # the longest, blue
    assert (np.abs(bar - [0, 114, 178]).max(axis=2) < 40).sum() > 500


def test_a_model_without_a_prompt_shows_the_frame_alone(baseline, tmp_path):
    video, out = make_video(tmp_path / "clip.mp4"), tmp_path / "out.mp4"
    call(baseline, video, "--out", out)
    shown = frame_of(out, 12)
    panel = demo_panel.Panel(("frame",), (48, 64), 3)
    assert panel.cell == (360, 480)
    assert shown.shape[1] == panel.width == 496


def test_the_prompt_of_a_frame_is_the_layers_for_it_and_the_one_a_clip_has_before(run):
    cfg = load_cfg(run / "config.yaml")
    model = build_predictor(cfg, run / "checkpoints" / "epoch_00001.pth").model
    view = demo_panel.view_prompt(model, None, span=10, device=torch.device("cpu"))
    clip = torch.randint(0, 256, (1, 3, 8, 16, 20), dtype=torch.uint8)
    frames = clip[0].movedim(0, -1).numpy()
    found = [view(frame) for frame in frames]  # five frames of ten: 2 apart
    prompt = model.prompts["0"]
    assert isinstance(prompt, MotionPrompt)
    with torch.no_grad():
        prompts = prompt(clip[:, :, 1::2])[0][0] * 0.225 + 0.45
        attention = prompt.attention(clip[:, :, 1::2])[0]
    for place, number in enumerate((3, 5, 7)):
        wanted = (255 * prompts[:, place].clamp(0, 1)).round().movedim(0, -1).numpy()
        assert np.abs(found[number][1].astype(int) - wanted).max() <= 1
        order = attention[place].flatten().argsort()
        redness = found[number][0].astype(int) @ [1, 0, -1]
        assert (np.diff(redness.flatten()[order.numpy()]) >= -2).all()


@pytest.mark.parametrize("size", [(48, 64), (1080, 1920), (1920, 1080), (20, 300), (7, 9)])
@pytest.mark.parametrize("names", [("frame",), ("frame", "attention", "prompt")])
def test_a_panel_is_of_even_size_and_holds_long_names(names, size):
    panel = demo_panel.Panel(names, size, 5)
    pictures = [np.full((*size, 3), 100, np.uint8)] * len(names)
    bars = {"(VT-0) a very long name of a class $x$ " * 5: 0.9, "b": 0.1}
    picture = panel.draw(pictures, "0.0 to 1.0 s", bars)
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert picture.shape[1] >= 480
    assert (picture == 100).all(axis=2).sum() >= len(names) * panel.cell[0] * panel.cell[1]
    # the name ends where its bar begins
    row = picture[-5 * 30 - 8 : -4 * 30 - 8]
    assert (row[:, round(0.48 * panel.width) - 6 : round(0.48 * panel.width)] == 255).all()


def test_a_folder_is_worked_through_in_order_and_told_of(run, tmp_path, capsys):
    folder, out = tmp_path / "videos", tmp_path / "movies"
    folder.mkdir()
    for name in ("b.mp4", "a.MKV", "c.mp4"):
        make_video(folder / name, "mkv" if name.endswith("MKV") else "mp4")
    (folder / "notes.txt").write_text("no video")
    call(run, folder, "--out", out, "--json", tmp_path / "x.json")
    assert [path.name for path in sorted(out.iterdir())] == ["a.MKV.mp4", "b.mp4.mp4", "c.mp4.mp4"]
    printed = capsys.readouterr().out
    places = [
        printed.index(f"[{i}/3] {folder / name}")
        for i, name in enumerate(("a.MKV", "b.mp4", "c.mp4"), 1)
    ]
    assert places == sorted(places)
    assert len(json.loads((tmp_path / "x.json").read_text())["videos"]) == 3


def test_a_broken_video_does_not_keep_others_from_their_predictions(run, tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    make_video(folder / "b.mp4")
    (folder / "a.mp4").write_text("broken")
    with pytest.raises(SystemExit, match="^error: 1 of 2 videos can't be read"):
        run_cli(lambda: call(run, folder, "--json", tmp_path / "x.json"))
    assert "a.mp4: " in capsys.readouterr().err
    content = json.loads((tmp_path / "x.json").read_text())
    assert [video["video"] for video in content["videos"]] == [str(folder / "b.mp4")]
    assert [video["video"] for video in content["unreadable"]] == [str(folder / "a.mp4")]


class Stdin:
    def __init__(self, buffer):
        self.buffer = buffer

    def isatty(self):
        return False


@pytest.mark.parametrize("kind", ["mkv", "ts"])
def test_a_pipe_gets_the_predictions_of_the_file_and_a_movie_with_its_sound(
    kind, run, tmp_path, monkeypatch
):
    video = make_video(tmp_path / f"clip.{kind}", kind, sound="aac")
    monkeypatch.setattr(sys, "stdin", Stdin(io.BufferedReader(Pipe(video.read_bytes()))))
    call(run, "-", "--json", tmp_path / "pipe.json", "--out", tmp_path / "pipe.mp4")
    call(run, video, "--json", tmp_path / "file.json", "--out", tmp_path / "file.mp4")
    piped, read = (predictions_of(tmp_path / f"{name}.json") for name in ("pipe", "file"))
    assert [each["top"] for each in piped] == [each["top"] for each in read]
    assert [each["start"] for each in piped] == pytest.approx([each["start"] for each in read])
    assert len(piped) == 4
    sounds = [
        [piece for _, piece in packets_of(tmp_path / f"{name}.mp4")] for name in ("pipe", "file")
    ]
    assert sounds[0] == sounds[1]
    assert len(sounds[0]) >= 20 * 1920 // 1024


@pytest.fixture
def camera(monkeypatch):
    """Put FFmpeg's test picture, ten a second without an end, in the place of a camera."""
    asked = []

    def opened(device):
        asked.append(device)
        return open_camera("testsrc=size=64x48:rate=10", "lavfi")

    monkeypatch.setattr(demo_run, "open_camera", opened)
    return asked


def test_a_camera_is_predicted_until_its_seconds_are_over(run, tmp_path, camera):
    out = tmp_path / "out.mp4"
    call(run, "--camera", 0, "--seconds", 3, "--out", out, "--json", tmp_path / "x.json")
    assert camera == ["/dev/video0"]
    with av.open(str(out)) as container:
        assert container.streams.video[0].frames == 30
        assert container.streams.video[0].average_rate == 10
    assert len(predictions_of(tmp_path / "x.json")) == 5  # of 10 frames, 5 apart


def test_an_interrupted_camera_leaves_what_it_has(run, tmp_path, camera, monkeypatch):
    calls = []
    predict = Predictor.predict

    def interrupted(self, window):
        calls.append(window)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return predict(self, window)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    call(run, "/dev/video3", "--out", tmp_path / "out.mp4", "--json", tmp_path / "x.json")
    assert camera == ["/dev/video3"]
    assert len(predictions_of(tmp_path / "x.json")) == 3  # and the one that ends with the stream
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 20


def test_an_interrupt_while_a_pipe_is_silent_is_its_end(run, tmp_path, monkeypatch):
    class Silent(Pipe):
        def readinto(self, buffer):
            count = super().readinto(buffer)
            if not count:
                raise KeyboardInterrupt
            return count

    data = make_video(tmp_path / "clip.ts", "ts").read_bytes()
    monkeypatch.setattr(sys, "stdin", Stdin(io.BufferedReader(Silent(data))))
    call(run, "-", "--json", tmp_path / "x.json", "--out", tmp_path / "out.mp4")
    assert len(predictions_of(tmp_path / "x.json")) == 4
    assert frame_of(tmp_path / "out.mp4", FRAMES - 1).any()


def test_a_model_too_slow_for_a_camera_leaves_windows_out(run, camera, monkeypatch, tmp_path):
    clock = [0.0]
    monkeypatch.setattr(demo_run.time, "monotonic", lambda: clock[0])
    predict = Predictor.predict

    def slow(self, window):
        clock[0] += 2.2  # seconds for a window, of which there is one each half second
        return predict(self, window)

    monkeypatch.setattr(Predictor, "predict", slow)
    call(run, "--camera", 0, "--seconds", 8, "--json", tmp_path / "x.json")
    starts = [each["start"] for each in predictions_of(tmp_path / "x.json")]
    assert 3 <= len(starts) < 8
    assert np.diff(starts).max() >= 1.0


def test_overrides_come_after_the_videos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "TEST.AVI").touch()
    words = ["TEST.AVI", "IMG.MP4", "TEST.BATCH_SIZE", "2", "NUM_GPUS", "0"]
    assert part_words(words) == (words[:2], words[2:])
    assert part_words(["TEST.BATCH_SIZE", "2"]) == ([], ["TEST.BATCH_SIZE", "2"])


WRONG = {
    "no video": ([], "no video was given"),
    "no such file": (["absent.mp4"], "absent.mp4 does not exist; name a video file"),
    "no video in it": (["notes.txt"], "notes.txt: .*check that it is a video"),
    "a folder without videos": (["."], "has no videos in it; they end in .3gp"),
    "a URL": (["rtsp://camera/1"], "is a URL, none is opened; pipe"),
    "no such camera": (["--camera", "97"], "/dev/video97: No such file"),
    "two sources": (["{video}", "--camera", "0"], "choose one of them"),
    "a pipe and a file": (["-", "{video}"], "a pipe or camera goes alone"),
    "the whole of a pipe": (["-", "--window", "whole"], "give --window sliding"),
    "seconds of a file": (["{video}", "--seconds", "3"], "files are read to their end"),
    "stride of the whole": (["{video}", "--window", "whole", "--stride", "1"], "leave it out"),
    "no stride": (["{video}", "--stride", "0"], "--stride 0: it must be above 0"),
    "no classes": (["{video}", "--topk", "0"], "--topk 0: it must be at least 1"),
    "a folder to write": (["{video}", "--out", "."], r"--out \. is a folder; name a file"),
    "another container": (["{video}", "--out", "x.avi"], r"x.avi: .* must end in \.mp4"),
    "the video itself": (["{video}", "--out", "{video}"], "is the video itself"),
    "one movie of two": (["{video}", "{video}", "--out", "x.mp4"], "name a folder"),
    "two movies alike": (["{video}", "{video}", "--out", "x"], "in two calls"),
    "JSON over the video": (["{video}", "--json", "{video}"], "is one of the videos"),
    "JSON below a file": (["{video}", "--json", "notes.txt/x.json"], "can't be written: .*notes"),
    "a movie below a file": (["{video}", "--out", "notes.txt/x.mp4"], "can't be written: .*notes"),
    "another device": (["{video}", "NUM_GPUS", "1"], "--device says what the demo runs on"),
    "a folder for JSON": (["{video}", "--json", "."], r"--json \. is a folder"),
    "a wrong key": (["{video}", "TEST.BATCH_SIZES", "1"], "did you mean TEST.BATCH_SIZE"),
    "half an override": (["{video}", "TEST.BATCH_SIZE"], "has no partner"),
    "other classes": (["{video}", "MODEL.NUM_CLASSES", "4"], "check MODEL.NAME, MODEL.NUM_CLASSES"),
    "a pathway without": (["{video}", "--pathway", "1"], "pathway 1 has no prompt"),
    "no run": (["{video}", "--checkpoint", "absent"], "name a checkpoint or the OUTPUT_DIR"),
    "no config": (["{video}", "--checkpoint", "notes.txt"], "name one with --cfg"),
    "no weights": (["{video}", "--checkpoint", "notes.txt", "--cfg", "{run}/config.yaml"], "notes"),
    "no such config": (["{video}", "--cfg", "absent.yaml"], "there is no file absent.yaml"),
    "no GPU": (["{video}", "--device", "cuda"], "finds no GPU here; give --device cpu"),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_what_a_user_gets_wrong_is_one_line_and_writes_nothing(
    case, run, tmp_path_factory, tmp_path, monkeypatch
):
    video = make_video(tmp_path_factory.mktemp("video") / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "notes.txt").write_text("no video")
    words, message = WRONG[case]
    words = [word.format(video=video, run=run) for word in words]
    given = [] if "--checkpoint" in words else ["--checkpoint", str(run)]
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as caught:
        run_cli(lambda: main([*given, *words]))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_terminal_is_no_pipe(run, monkeypatch):
    terminal = Stdin(io.BytesIO())
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(ValueError, match="cat video.mkv"):
        call(run, "-")


def test_an_mp4_in_a_pipe_with_its_index_at_the_end_says_what_to_do(run, tmp_path, monkeypatch):
    data = make_video(tmp_path / "clip.mp4").read_bytes()
    end = data.index(b"moov") - 4  # and so far ahead of it are the frames that nothing goes back
    data = data[:end] + (8 << 20).to_bytes(4, "big") + b"free" + bytes((8 << 20) - 8) + data[end:]
    monkeypatch.setattr(sys, "stdin", Stdin(io.BufferedReader(Pipe(data))))
    with pytest.raises(SystemExit, match=r"^error: the pipe: .*faststart"):
        run_cli(lambda: call(run, "-"))


@pytest.mark.data
def test_a_real_clip_gets_a_movie(run, shared, tmp_path):
    clip = shared / "data" / "ut_interaction" / "segmented_set1" / "0_1_4.avi"
    call(run, clip, "--out", tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].average_rate == 30
        assert container.streams.video[0].frames == 108
