import json
import shutil
import subprocess
import sys
from pathlib import Path

import extract_features
import numpy as np
import pytest
import torch
from features_layers import Taps, build_layers, find_head, pick_layers
from features_videos import below, list_jobs
from safetensors import safe_open

from tests.conftest import ROOT
from tests.data.conftest import write_video
from tests.models.tiny import TINY
from vmp.config import load_cfg
from vmp.data import VideoReader, build_loader
from vmp.data.records import SPLITS
from vmp.engine.build import build_device
from vmp.engine.evaluate import predict
from vmp.engine.trained import build_trained
from vmp.models import build_model

pytestmark = pytest.mark.usefixtures("_one_thread")

# The crop of the test is twice that of the training: a convolutional head sees four places.
CONFIG = """
TRAIN: {{DATASET: csv, PRECISION: float32}}
TEST: {{BATCH_SIZE: 4, NUM_ENSEMBLE_VIEWS: 2, NUM_SPATIAL_CROPS: 3}}
MODEL: {{NAME: {name}, NUM_CLASSES: 3}}
DATA: {{NUM_FRAMES: 8, SAMPLING_RATE: 1, TARGET_FPS: 0.0, TRAIN_CROP_SIZE: 32, TEST_CROP_SIZE: 64,
  TRAIN_JITTER_SCALES: [32, 40], PATH_TO_DATA_DIR: "{root}"}}
DATA_LOADER: {{NUM_WORKERS: 0, PIN_MEMORY: False}}
PROMPT: {{ENABLE: True}}
NUM_GPUS: 0
"""
VIEWS = 6


def write_run(root: Path, name: str = "x3d", *opts: object) -> Path:
    """Write the folder of a run: its config, and a checkpoint with random weights."""
    run = root / f"run_{name}"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(name=name, root=root))
    words = [[f"{name}.{key}".upper(), str(value)] for key, value in TINY[name].items()]
    cfg = load_cfg(run / "config.yaml", [*sum(words, []), *map(str, opts)])
    (run / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(1)
    model = build_model(cfg)
    with torch.no_grad():
        find_head(model).weight.mul_(20)  # else all classes are as likely
    torch.save({"model": model.state_dict()}, run / "checkpoints" / "epoch_00001.pth")
    return run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set: four videos, two of one name, and one that is none."""
    root = tmp_path_factory.mktemp("features")
    for number, name in enumerate(("a/one.mp4", "b/one.mp4", "two.mp4")):
        (root / name).parent.mkdir(exist_ok=True)
        write_video(root / name, 12 + number, size=(64, 96), first=40 * number)
    (root / "broken.mp4").write_text("this is a text\n" * 100)
    (root / "test.csv").write_text("a/one.mp4 0\nb/one.mp4 1\ntwo.mp4 2\n")
    (root / "train.csv").write_text("a/one.mp4 0\nbroken.mp4 1\n")
    return root


@pytest.fixture(scope="module")
def run(root):
    return write_run(root)


def extract(run, *words) -> int:
    return extract_features.main(["--checkpoint", str(run), *map(str, words)])


def read(path):
    """Return tensors and facts of a file of features."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file if name != "vmp"}
            return arrays, json.loads(str(file["vmp"]))
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["vmp"])


# --------------------------------------------------------------------------- what comes out
@pytest.mark.parametrize("name", ["x3d", "timesformer", "slowfast"])
def test_features_through_the_last_layer_are_the_scores_of_the_test(name, root, tmp_path):
    run = write_run(tmp_path, name, "DATA.PATH_TO_DATA_DIR", root)
    assert extract(run, "--split", "test", "--out", tmp_path / "out") == 0
    cfg = load_cfg(run / "config.yaml")
    model = build_trained(cfg, run / "checkpoints" / "epoch_00001.pth").model
    with build_loader(cfg, "test") as loader:
        expected = predict(model, loader, device=build_device(cfg)).scores
    for number, video in enumerate(("a/one.mp4", "b/one.mp4", "two.mp4")):
        features = read(tmp_path / "out" / f"{video}.safetensors")[0]["features"]
        assert features.shape[:-1] == ((VIEWS,) if name == "timesformer" else (VIEWS, 4))
        places = find_head(model)(features).softmax(-1).reshape(VIEWS, -1, 3)
        scores = places.mean(dim=(0, 1)).double()
        torch.testing.assert_close(scores, expected[number], atol=1e-5, rtol=1e-5)


def test_a_layer_gives_what_the_model_computes_for_the_same_frames(run, root, tmp_path):
    words = ("--layer", "blocks.2", "--layer", "prompts.0", "--views", "center", root / "two.mp4")
    assert extract(run, *words, "--out", tmp_path) == 0
    (path,) = tmp_path.rglob("*.safetensors")
    tensors, facts = read(path)
    with VideoReader(str(root / "two.mp4")) as video:
        frames = video.read(tensors["frames"][0].tolist(), 64)
    left = (frames.shape[2] - 64) // 2
    clip = torch.from_numpy(frames[:, :, left : left + 64].transpose(3, 0, 1, 2).copy())
    cfg = load_cfg(run / "config.yaml")
    model = build_trained(cfg, run / "checkpoints" / "epoch_00001.pth").model
    with torch.no_grad():
        values = model.prompts["0"](clip[None])[0]
        torch.testing.assert_close(tensors["prompts.0"], values)
        for block in model.backbone.net.blocks[:3]:
            values = block(values)
    torch.testing.assert_close(tensors["blocks.2"], values)
    assert facts["layers"] == ["blocks.2", "prompts.0"]
    assert facts["path"] == str(root / "two.mp4")
    assert len(facts["checkpoint_sha256"]) == len(facts["config_sha256"]) == 64
    assert (facts["clips"], facts["crops"], facts["label"]) == (1, 1, -1)


def test_npz_holds_what_safetensors_does_and_a_mean_leaves_the_channels(run, root, tmp_path):
    layers = ("--layer", "features", "--layer", "blocks.1")
    words = (root / "two.mp4", "--views", "center", *layers)
    assert extract(run, *words, "--out", tmp_path / "whole", "--format", "npz") == 0
    assert extract(run, *words, "--out", tmp_path / "mean", "--pool", "mean") == 0
    (whole,), (mean,) = ((tmp_path / name).rglob("two.mp4.*") for name in ("whole", "mean"))
    whole, mean = read(whole)[0], read(mean)[0]
    assert whole["features"].shape == (1, 4, 32)
    assert torch.equal(whole["frames"], mean["frames"])
    torch.testing.assert_close(mean["features"], whole["features"].mean(1))
    torch.testing.assert_close(mean["blocks.1"], whole["blocks.1"].mean((2, 3, 4)))


@pytest.mark.parametrize("attention", ["divided_space_time", "joint_space_time"])
def test_every_layer_of_a_transformer_is_that_of_the_clip_alone(attention, root, tmp_path):
    """Patches have the clips second, rows of attention mix them with places."""
    run = write_run(tmp_path, "timesformer", "TIMESFORMER.ATTENTION_TYPE", attention)
    cfg = load_cfg(run / "config.yaml")
    layers = build_layers(cfg)
    assert any(layer.batch is None for layer in layers)
    words = [word for layer in layers for word in ("--layer", layer.name)]
    assert extract(run, root / "two.mp4", "--out", tmp_path / "out", *words) == 0
    (path,) = (tmp_path / "out").rglob("*.safetensors")
    tensors = read(path)[0]
    for layer in layers:
        assert tensors[layer.name].shape == (VIEWS, *layer.shape), layer
    separable = [layer.name for layer in layers if layer.batch is not None]
    words = [word for name in separable for word in ("--layer", name)]
    assert extract(run, root / "two.mp4", "--out", tmp_path / "batches", *words) == 0
    batches = read(next((tmp_path / "batches").rglob("*.safetensors")))[0]
    for name in separable:  # four clips a batch
        torch.testing.assert_close(batches[name], tensors[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_the_layers_of_every_backbone_have_names(name, tmp_path):
    run = write_run(tmp_path, name)
    cfg = load_cfg(run / "config.yaml")
    layers = {layer.name: layer for layer in build_layers(cfg)}
    head = find_head(build_model(cfg))
    assert layers["features"].shape[-1] == head.in_features
    assert layers["prompts.0"].shape[0] == 3
    assert len(layers) > 10


def test_the_outputs_of_two_pathways_are_two_layers(tmp_path):
    layers = build_layers(load_cfg(write_run(tmp_path, "slowfast") / "config.yaml"))
    both = pick_layers(layers, ["blocks.1"])
    assert [layer.name for layer in both] == ["blocks.1[0]", "blocks.1[1]"]
    assert pick_layers(layers, ["blocks.1[1]"]) == both[1:]
    assert both[1].shape[1] == 8  # frames of the fast pathway


def test_a_layer_that_works_in_place_does_not_change_the_one_before(run):
    cfg = load_cfg(run / "config.yaml")
    model = build_model(cfg).eval()
    model.backbone.net.blocks[0].activation.inplace = True
    with Taps(model, pick_layers(build_layers(cfg), ["blocks.0.norm"]), "none") as taps:
        model(torch.randint(256, (1, 3, 9, 64, 64), dtype=torch.uint8))
    assert taps.take()["blocks.0.norm"].min() < 0


# --------------------------------------------------------------------------- a folder of them
def test_two_videos_of_one_name_have_a_file_each_and_what_is_broken_is_counted(
    run, root, tmp_path, capsys
):
    out = tmp_path / "out"
    assert extract(run, root, "--views", "center", "--out", out) == 1
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.safetensors")}
    assert files == {f"{name}.safetensors" for name in ("a/one.mp4", "b/one.mp4", "two.mp4")}
    told = capsys.readouterr()
    assert f"not read: {root}/broken.mp4: " in told.err
    assert "3 files of features written" in told.out
    assert "; 1 videos could not be read" in told.out
    assert not list(out.rglob("*.partial"))


def test_the_same_command_goes_on_where_it_was_stopped(run, root, tmp_path, capsys):
    words = ("--split", "test", "--views", "center", "--out", tmp_path)
    assert extract(run, *words) == 0
    there, gone = tmp_path / "a/one.mp4.safetensors", tmp_path / "two.mp4.safetensors"
    before, tensors = there.stat().st_mtime_ns, read(gone)[0]
    gone.unlink()
    assert extract(run, *words, "TEST.BATCH_SIZE", 1) == 0
    assert "1 files of features written" in capsys.readouterr().out
    assert there.stat().st_mtime_ns == before
    torch.testing.assert_close(read(gone)[0], tensors)  # another batch, other last bits


def test_features_of_another_kind_are_not_mixed(run, root, tmp_path):
    words = ("--split", "test", "--views", "center")
    out = tmp_path / "out"
    assert extract(run, *words, "--out", out) == 0
    with pytest.raises(ValueError, match=r"of another kind: layers .*'features'.* there"):
        extract(run, *words, "--layer", "blocks.3", "--out", out)
    with pytest.raises(ValueError, match=r"DATA.SAMPLING_RATE \(1 there, 2 now\)"):
        extract(run, *words, "--out", out, "DATA.SAMPLING_RATE", 2)
    other = shutil.copytree(run, tmp_path / "run")
    path = other / "checkpoints" / "epoch_00001.pth"
    state = torch.load(path)
    state["model"]["prompts.0.power_norm.m"] += 1
    torch.save(state, path)
    with pytest.raises(ValueError, match="checkpoint_sha256"):
        extract(other, *words, "--out", out)
    (out / "features.json").write_text("{")
    with pytest.raises(ValueError, match=r"features.json can't be read"):
        extract(run, *words, "--out", out)


@pytest.mark.slow
@pytest.mark.dist
def test_two_processes_write_what_one_does(run, root, tmp_path):
    for processes in (1, 2):
        tool, out = ROOT / "tools" / "extract_features.py", tmp_path / str(processes)
        words = ["--checkpoint", run, "--views", "center", "--out", out, root]
        command = [sys.executable, tool, *words, "--processes", processes, "TEST.BATCH_SIZE", 1]
        ended = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
        assert ended.returncode == 1, ended.stderr
        assert "3 files of features written" in ended.stdout
        assert "not read" in ended.stderr
        assert "Traceback" not in ended.stderr
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.*"))
    assert len(files) == 6  # two folders are among them
    for file in files:
        if (tmp_path / "1" / file).is_file():
            assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


# --------------------------------------------------------------------------- which videos
def test_a_list_has_paths_relative_to_itself_and_perhaps_labels(tmp_path):
    (tmp_path / "sub").mkdir()
    path = tmp_path / "sub" / "list.txt"
    path.write_text("first take.mp4 3\n\n../second.avi\nsub/third.mkv,12\n")
    jobs = list_jobs([str(path)])
    assert [job.record.label for job in jobs] == [3, -1, 12]
    assert jobs[0].name == "first take.mp4"
    assert jobs[2].record.path == str(tmp_path / "sub" / "sub" / "third.mkv")
    assert ".." not in jobs[1].name


@pytest.mark.parametrize(
    ("path", "name"),
    [("a/b.mp4", "a/b.mp4"), ("/data/b.mp4", "data/b.mp4"), ("./a/../b.mp4", "b.mp4")],
)
def test_the_name_of_a_file_is_the_path_of_its_video(path, name):
    assert below(path) == name


def test_a_name_that_two_videos_would_have_is_refused(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.mp4").touch()
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(ValueError, match=r"would both be written as one.mp4; name a folder"):
        list_jobs(folders)
    assert len(list_jobs([folders[0], folders[0]])) == 1
    assert len(list_jobs([str(tmp_path)])) == 2


# --------------------------------------------------------------------------- what is wrong
WRONG = {
    "there is no such layer that runs once a clip; did you mean": ["--layer", "blocks.33"],
    "it does not exist; name a checkpoint": ["--checkpoint", "nowhere"],
    "it does not fit the model": ["X3D.DIM_C5", "64"],
    "--processes is for the CPU": ["--processes", "2", "NUM_GPUS", "2"],
    "can't be written to": ["--out", "/proc/nowhere"],
    "the list nowhere.txt can't be read": ["nowhere.txt"],
    "DATA.NUM_FRAME": ["DATA.NUM_FRAME", "8"],
    "64 GPU(s) are needed on this machine": ["NUM_GPUS", "64"],
    "nowhere.yaml": ["--cfg", "nowhere.yaml"],
}


@pytest.mark.parametrize("message", WRONG)
def test_a_mistake_is_told_in_one_line(message, run, root, tmp_path):
    with pytest.raises(ValueError) as told:  # noqa: PT011  (the message is compared)
        extract(run, "--out", tmp_path, root / "two.mp4", *WRONG[message])
    assert message in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["video.mp4"], "--out FOLDER is missing"),
        (["--out", "x"], "name videos, folders or lists, or a --split"),
        (["--out", "x", "--split", "test", "video.mp4"], "name videos, folders or lists, or a"),
        (["--out", __file__, "video.mp4"], "is a file; name a folder"),
        (["--out", "x", "video.mp4", "--processes", "0"], "it must be at least 1"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        extract("run", *words)
    assert message in capsys.readouterr().err


def test_the_splits_are_those_of_the_data_sets():
    assert extract_features.SPLITS == SPLITS


def test_overrides_begin_with_the_first_key_of_a_config():
    words = ["MY.mp4", "two.mp4", "NUM_GPUS", "1", "DATA.TARGET_FPS", "30.0"]
    assert extract_features.part_words(words) == (words[:2], words[2:])
    assert extract_features.part_words(words[:2]) == (words[:2], [])


def test_a_folder_without_videos_is_told(run, tmp_path):
    with pytest.raises(ValueError, match="has no video in it"):
        extract(run, tmp_path, "--out", tmp_path / "out")


def test_the_layers_are_listed(run, capsys):
    assert extract(run, "--list-layers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["features", "4", "x", "32", "input", "of", "Linear"]
    assert any(line.startswith("blocks.5.proj ") for line in lines)
