import json
import math

import av
import numpy as np
import pytest
import torch
from torch import nn

from vmp.data import VideoReader
from vmp.data.motion_shapes import INDEX, NAMES, motionshapes

CLASSES = len(NAMES)
TRAIN, TEST, FRAMES = 960, 480, 12


@pytest.fixture(scope="module")
def made(prepare, tmp_path_factory):
    """A small data set as prepare.py makes it."""
    out = tmp_path_factory.mktemp("motionshapes")
    arguments = ["--train", TRAIN, "--test", TEST, "--size", 32, "--frames", FRAMES, "--seed", 7]
    assert prepare.main(["--out", str(out), "--workers", "2", *map(str, arguments)]) == 0
    return out


@pytest.fixture(scope="module")
def decoded(made):
    """Frames (N, T, 3, H, W) in [0, 1] and labels (N,) of both splits, decoded from the files."""
    splits = []
    for split in ("train", "test"):
        records = motionshapes(str(made), split)
        videos = np.stack([VideoReader(record.path).read(range(FRAMES)) for record in records])
        labels = torch.tensor([record.label for record in records])
        splits.append((torch.from_numpy(videos).permute(0, 1, 4, 2, 3).float() / 255, labels))
    return splits


def train_and_test(train, test, epochs=12):
    """Train a small network on images (N, C, H, W); return its test accuracy."""
    torch.manual_seed(0)
    (images, labels), (test_images, test_labels) = train, test
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    net = nn.Sequential(
        *(nn.Conv2d(images.shape[1], 16, 5, 2, 2), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 48, 3, 2, 1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, CLASSES)),
    )
    optimizer = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(32):
            loss = nn.functional.cross_entropy(net((images[batch] - mean) / std), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        guesses = net((test_images - mean) / std).argmax(1)
    return (guesses == test_labels).float().mean().item()


def chance_bound(num_tested, deviations=4.0):
    """Return the accuracy that guessing exceeds with a probability of about 3e-5."""
    chance = 1 / CLASSES
    return chance + deviations * math.sqrt(chance * (1 - chance) / num_tested)


@pytest.mark.usefixtures("_one_thread")
def test_one_frame_does_not_tell_the_class_but_two_do(decoded):
    train, test = decoded

    def frames(split, *numbers):
        videos, labels = split
        return torch.cat([videos[:, number] for number in numbers], dim=1), labels

    for number in (0, FRAMES // 2, FRAMES - 1):
        accuracy = train_and_test(frames(train, number), frames(test, number))
        assert accuracy < chance_bound(TEST), f"frame {number}: {accuracy}"
    # the same network can learn the task, so the bound above means something
    assert train_and_test(frames(train, 4, 7), frames(test, 4, 7)) > 0.6


@pytest.mark.usefixtures("_one_thread")
def test_a_frame_that_leaks_the_class_is_found(decoded):
    """The control for small leaks: a patch that is a little brighter from class to class."""
    leaky = []
    for videos, labels in decoded:
        images = videos[:, 0].clone()
        images[:, :, :8, :8] += labels.view(-1, 1, 1, 1) / CLASSES * 0.5
        leaky.append((images, labels))
    assert train_and_test(*leaky) > 2 * chance_bound(TEST)


def test_what_is_drawn_does_not_know_the_class(prepare):
    """Each start on the torus is uniform for every class, first and last frame alike."""
    scenes = [prepare.draw_scene(np.random.default_rng((0, 0, n))) for n in range(1600)]
    starts = np.array([scene.things[-1].start for scene in scenes])
    speeds = np.array([scene.speeds for scene in scenes])
    motions = np.array(list(prepare.MOTIONS.values()))[np.arange(1600) % CLASSES]
    for time in (0, 19):
        states = (starts + time * motions * speeds) % 1
        for label in range(CLASSES):
            ordered = np.sort(states[label::CLASSES], axis=0)
            distance = np.abs(ordered - (np.arange(200)[:, None] + 0.5) / 200).max(axis=0)
            assert distance.max() < 0.14  # Kolmogorov-Smirnov: exceeded once in 1000


def test_each_class_moves_as_its_name_says(prepare):
    """Follow the centre, the area and the orientation of a bright bar on a plain background."""
    looks = {"colors": ((250.0,) * 3,) * 2, "stripes": 0.0}
    thing = prepare.Thing(shape=0, start=(0.5, 0.5, 0.1, 0.4), **looks)
    scene = prepare.Scene((thing,), (0.02, 0.02, 0.02, 0.03), (20.0,) * 3, (), (0.0, 0.0))
    moved = {}
    for name, motion in prepare.MOTIONS.items():
        video = prepare.render(scene, motion, 6, 64)[..., 0].astype(float) - 20
        moved[name] = np.subtract(_moments(video[-1]), _moments(video[0]))
    pixels = 5 * 0.02 * 64
    for name, (axis, change) in {
        "move_left": (0, -pixels),
        "move_right": (0, pixels),
        "move_up": (1, -pixels),
        "move_down": (1, pixels),
        "rotate_clockwise": (2, 36.0),  # on the screen, where y points down
        "rotate_counterclockwise": (2, -36.0),
    }.items():
        expected = np.zeros(3)
        expected[axis] = change
        np.testing.assert_allclose(moved[name][:3], expected, atol=0.5, err_msg=name)
    assert moved["grow"][3] > 0.15
    assert moved["shrink"][3] < -0.15


def _moments(picture):
    """Return centre x, centre y, orientation in degrees, log of the area."""
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    area = picture.sum()
    center_x, center_y = (picture * x).sum() / area, (picture * y).sum() / area
    xx = (picture * (x - center_x) ** 2).sum()
    yy = (picture * (y - center_y) ** 2).sum()
    xy = (picture * (x - center_x) * (y - center_y)).sum()
    return center_x, center_y, math.degrees(math.atan2(2 * xy, xx - yy) / 2), math.log(area)


def test_a_quarter_of_the_backgrounds_move_and_the_others_stand_still(prepare):
    scenes = [prepare.draw_scene(np.random.default_rng(n)) for n in range(800)]
    moving = [scene for scene in scenes if scene.drift != (0.0, 0.0)]
    assert 0.2 < len(moving) / 800 < 0.3
    for scene, still in ((moving[0], False), (next(s for s in scenes if s not in moving), True)):
        video = prepare.render(scene, (0, 0, 0, 0), 4, 32)
        assert (video[0] == video[3]).all() == still


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(prepare, tmp_path):
    def make(name, seed, workers):
        options = ["--train", "9", "--test", "9", "--size", "48", "--frames", "5"]
        out = tmp_path / name
        choice = ["--seed", str(seed), "--workers", str(workers)]
        assert prepare.main(["--out", str(out), *options, *choice]) == 0
        return {
            str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*.mp4"))
        }

    one, two, other = make("one", 0, 1), make("two", 0, 2), make("other", 1, 2)
    assert len(one) == 18
    assert one == two
    assert not set(one.values()) & set(other.values())
    assert len(set(one.values())) == 18  # train and test share none


def test_the_videos_are_what_was_asked_for(made):
    train, test = motionshapes(str(made), "train"), motionshapes(str(made), "test")
    assert (len(train), len(test)) == (TRAIN, TEST)
    assert [sum(record.label == label for record in test) for label in range(CLASSES)] == [60] * 8
    with VideoReader(test[0].path) as reader:
        assert (len(reader), reader.size) == (FRAMES, (32, 32))
    with av.open(test[0].path) as container:
        assert container.streams.video[0].codec_context.name in ("h264", "mpeg4")


def test_an_encoded_video_is_close_to_what_was_rendered(prepare, tmp_path, monkeypatch):
    scene = prepare.draw_scene(np.random.default_rng(1))
    video = prepare.render(scene, (1, 0, 0, 0), 8, 64)
    for codecs in (av.codecs_available, av.codecs_available - {"libx264"}):  # also MPEG-4
        monkeypatch.setattr(prepare.av, "codecs_available", codecs)
        prepare.encode(tmp_path / "x.mp4", video)
        read = VideoReader(tmp_path / "x.mp4").read(range(8))
        assert np.abs(read.astype(int) - video).mean() < 6  # chroma is stored at half the size


def test_a_stopped_run_goes_on_and_a_finished_one_is_quick(prepare, tmp_path, capsys, monkeypatch):
    options = ["--out", str(tmp_path), "--train", "4", "--test", "4", "--size", "32", "--frames"]
    assert prepare.main([*options, "4"]) == 0
    assert "made" in capsys.readouterr().out
    kept = (tmp_path / "train" / "000001.mp4").stat().st_mtime_ns
    (tmp_path / INDEX).unlink()
    (tmp_path / "train" / "000002.mp4").unlink()
    with pytest.raises(ValueError, match=r"no index\.json.*prepare\.py --out"):
        motionshapes(str(tmp_path), "train")
    assert prepare.main([*options, "4"]) == 0
    assert (tmp_path / "train" / "000001.mp4").stat().st_mtime_ns == kept
    assert len(motionshapes(str(tmp_path), "train")) == 4
    monkeypatch.setattr(prepare, "ProcessPoolExecutor", None)  # nothing is left to do
    assert prepare.main([*options, "4"]) == 0
    assert "already there" in capsys.readouterr().out


def test_failures_are_one_line_that_says_what_to_do(prepare, tmp_path, capsys):
    options = ["--out", str(tmp_path), "--train", "2", "--test", "2", "--frames", "4"]
    assert prepare.main([*options, "--size", "32"]) == 0
    assert prepare.main([*options, "--size", "48"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "made with other settings; give another --out" in error
    (tmp_path / "file").touch()
    assert prepare.main([*options[2:], "--out", str(tmp_path / "file" / "below")]) == 1
    assert "Not a directory" in capsys.readouterr().err
    for wrong in (["--size", "33"], ["--train", "0"], ["--frames", "1"], ["--seed", "-1"]):
        with pytest.raises(SystemExit) as stop:
            prepare.main([*options, *wrong])
        assert stop.value.code == 2


def test_a_broken_index_or_a_variant_is_refused(tmp_path):
    (tmp_path / INDEX).write_text(json.dumps({"train": [{"path": "x.mp4"}]}))
    with pytest.raises(ValueError, match="is broken"):
        motionshapes(str(tmp_path), "train")
    with pytest.raises(ValueError, match="one split"):
        motionshapes(str(tmp_path), "train", "2")
    with pytest.raises(ValueError, match=r"index\.json is a file; DATA\.PATH_TO_DATA_DIR is"):
        motionshapes(str(tmp_path / INDEX), "train")
