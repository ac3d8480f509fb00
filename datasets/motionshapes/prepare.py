"""Make MotionShapes: encoded videos in which only the motion tells the class.

A shape over a textured background is, at any time, at a point of a torus: (place x, place y,
angle, size), each counted in turns and starting again after a full one. Each start is uniform, and
nothing else depends on the class. The class is the one direction in which the point moves: left or
right in x, up or down in y, either way in angle, growing or shrinking in size. A uniform
distribution on a torus that is moved is uniform again, so every single frame, first or last, has
the same distribution for all classes; only two frames tell.

    python datasets/motionshapes/prepare.py --out data/motionshapes --train 1200 --test 400
"""

import argparse
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from vmp.data.motion_shapes import INDEX, NAMES

Array = npt.NDArray[np.float32]

# Raised when the videos of a seed change.
VERSION = 1
SETTINGS = "settings.json"
SPLITS = ("train", "test")
FPS = 25
CRF = 16
# Direction on the torus (x, y, angle, size); y points down, an angle runs clockwise.
MOTIONS = dict(
    zip(
        NAMES,
        [
            (-1, 0, 0, 0),
            (1, 0, 0, 0),
            (0, -1, 0, 0),
            (0, 1, 0, 0),
            (0, 0, 1, 0),
            (0, 0, -1, 0),
            (0, 0, 0, 1),
            (0, 0, 0, -1),
        ],
        strict=True,
    )
)
# Speed of each motion, turns a frame: a share of the frame's width, of 360 degrees, and of the
# way from the smallest size to the largest.
SPEEDS = ((0.022, 0.042), (0.022, 0.042), (0.020, 0.036), (0.035, 0.055))
# Radius of the shape, share of the frame's width.
RADII = (0.15, 0.33)
MOVING_BACKGROUNDS = 0.25


# --------------------------------------------------------------------------- shapes
def bar(x: Array, y: Array) -> Array:
    """Return the distance to a bar; all shapes fit in the unit circle, inside is negative."""
    return box(x, y, (-0.95, 0.95), (-0.31, 0.31))


def triangle(x: Array, y: Array) -> Array:
    """Return the distance to a slender triangle pointing at +x."""
    slope = np.float32(0.90) * np.abs(y) + np.float32(0.43) * x - np.float32(0.42)
    return np.maximum(slope, np.float32(-0.75) - x)


def ell(x: Array, y: Array) -> Array:
    """Return the distance to an L."""
    return np.minimum(box(x, y, (-0.55, -0.05), (-0.8, 0.8)), box(x, y, (-0.55, 0.7), (0.35, 0.8)))


def tee(x: Array, y: Array) -> Array:
    """Return the distance to a T lying on its side."""
    return np.minimum(box(x, y, (0.3, 0.75), (-0.65, 0.65)), box(x, y, (-0.9, 0.5), (-0.22, 0.22)))


def half_disc(x: Array, y: Array) -> Array:
    """Return the distance to half a disc."""
    x = x + np.float32(0.35)
    return np.maximum(np.sqrt(x * x + y * y) - np.float32(0.92), -x)


def arrow(x: Array, y: Array) -> Array:
    """Return the distance to an arrow pointing at +x."""
    slope = np.float32(0.71) * (x + np.abs(y)) - np.float32(0.67)
    head = np.maximum(slope, np.float32(0.15) - x)
    return np.minimum(head, box(x, y, (-0.9, 0.3), (-0.24, 0.24)))


def box(
    x: Array, y: Array, between_x: tuple[float, float], between_y: tuple[float, float]
) -> Array:
    """Return the distance to a rectangle."""
    (left, right), (top, bottom) = between_x, between_y
    across = np.maximum(np.float32(left) - x, x - np.float32(right))
    return np.maximum(across, np.maximum(np.float32(top) - y, y - np.float32(bottom)))


# None is symmetric by less than half a turn, so rotation shows.
SHAPES: tuple[Callable[[Array, Array], Array], ...] = (bar, triangle, ell, tee, half_disc, arrow)


# --------------------------------------------------------------------------- scenes
class Thing(NamedTuple):
    """A shape: its outline, where it starts on the torus, and its looks.

    Attributes:
        shape: which of SHAPES.
        start: (x, y, angle, size), turns.
        colors: two RGB colours of its stripes, 0 to 255.
        stripes: stripes across its radius; 0 is plain.
    """

    shape: int
    start: tuple[float, ...]
    colors: tuple[tuple[float, ...], ...]
    stripes: float


class Scene(NamedTuple):
    """Everything about a video but its class.

    Attributes:
        things: static distractors first; the last is the one that moves.
        speeds: turns a frame along each direction of the torus; the class uses one of them.
        color: RGB of the background, 0 to 255.
        waves: of the background: whole periods along x and y, phase in turns, contrast in levels.
        drift: turns a frame by which the background moves along x and y.
    """

    things: tuple[Thing, ...]
    speeds: tuple[float, ...]
    color: tuple[float, ...]
    waves: tuple[tuple[float, ...], ...]
    drift: tuple[float, float]


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene; the class is not known here."""
    color = rng.uniform(30.0, 80.0) + rng.uniform(-20.0, 20.0, 3)
    waves = [
        (*rng.integers(-3, 4, 2).tolist(), rng.random(), rng.uniform(2.0, 8.0)) for _ in range(3)
    ]
    drift = rng.uniform(-0.02, 0.02, 2) * (rng.random() < MOVING_BACKGROUNDS)
    distractors = [_draw_thing(rng, level=100.0) for _ in range(rng.integers(0, 3))]
    return Scene(
        things=(*distractors, _draw_thing(rng, level=195.0)),
        speeds=tuple(rng.uniform(low, high) for low, high in SPEEDS),
        color=tuple(color.tolist()),
        waves=tuple(waves),
        drift=(float(drift[0]), float(drift[1])),
    )


def _draw_thing(rng: np.random.Generator, level: float) -> Thing:
    """Draw a shape whose colours lie around `level`, brighter than the background."""
    color = level + rng.uniform(-50.0, 50.0, 3)
    other = color - rng.uniform(20.0, 50.0)
    return Thing(
        shape=int(rng.integers(len(SHAPES))),
        start=tuple(rng.random(4).tolist()),
        colors=(tuple(color.clip(0, 255).tolist()), tuple(other.clip(0, 255).tolist())),
        stripes=float(rng.choice([0.0, 1.5, 2.5])),
    )


# --------------------------------------------------------------------------- pixels
def render(scene: Scene, motion: tuple[int, ...], num_frames: int, size: int) -> npt.NDArray[Any]:
    """Render a video.

    Only sums, products, roots and comparisons touch pixels, and those of the sine, cosine and
    exponential are rounded to 1e-5: the pixels are the same on every machine.

    Args:
        scene: what is there.
        motion: direction on the torus.
        num_frames: T.
        size: H = W, pixels.

    Returns:
        (T, H, W, 3) uint8 RGB.
    """
    times = np.arange(num_frames)
    video = _background(scene, times, size)
    for thing in scene.things:
        still = thing is not scene.things[-1]
        _draw(video, thing, (0, 0, 0, 0) if still else motion, scene.speeds)
    return np.floor(video + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def _background(scene: Scene, times: npt.NDArray[Any], size: int) -> Array:
    """Return (T, H, W, 3): triangle waves that meet at the borders, so that they can drift."""
    turns = ((np.arange(size) + 0.5) / size).astype(np.float32)
    moved = [turns - np.float32(speed) * times[:, None].astype(np.float32) for speed in scene.drift]
    level = np.zeros((len(times), size, size), dtype=np.float32)
    for along_x, along_y, phase, contrast in scene.waves:
        x = moved[0][:, None, :] * np.float32(along_x)
        y = moved[1][:, :, None] * np.float32(along_y)
        level += np.float32(contrast) * _triangle_wave(x + y + np.float32(phase))
    return level[..., None] + np.asarray(scene.color, dtype=np.float32)


def _triangle_wave(turns: Array) -> Array:
    """Return a wave in [-1, 1] of period 1."""
    return np.float32(4.0) * np.abs(turns - np.floor(turns) - np.float32(0.5)) - np.float32(1.0)


def _draw(video: Array, thing: Thing, motion: tuple[int, ...], speeds: tuple[float, ...]) -> None:
    """Draw a thing onto (T, H, W, 3), its edges smoothed over a pixel, its ends wrapped."""
    num_frames, size = video.shape[:2]
    times = np.arange(num_frames if any(motion) else 1)  # what stands still is drawn once
    states = np.asarray(thing.start) + times[:, None] * np.multiply(motion, speeds)
    states -= np.floor(states)
    low, high = RADII
    radius = _exact(low * (high / low) ** states[:, 3])[:, None, None]
    angle = 2 * math.pi * states[:, 2]
    cos, sin = _exact(np.cos(angle))[:, None, None], _exact(np.sin(angle))[:, None, None]
    dx = _offset(states[:, 0], size)[:, None, :] / radius
    dy = _offset(states[:, 1], size)[:, :, None] / radius
    x, y = cos * dx + sin * dy, cos * dy - sin * dx
    cover = np.float32(0.5) - SHAPES[thing.shape](x, y) * radius * np.float32(size)
    cover = cover.clip(0, 1)[..., None]
    mixed = (np.float32(0.5) + np.float32(0.5) * _triangle_wave(x * np.float32(thing.stripes)))[
        ..., None
    ]
    first, second = (np.asarray(color, dtype=np.float32) for color in thing.colors)
    video += cover * (first + mixed * (second - first) - video)


def _offset(center: npt.NDArray[Any], size: int) -> Array:
    """Return (T, size): how far right of the centre each pixel is, in [-0.5, 0.5) turns."""
    away = (np.arange(size) + 0.5) / size - center[:, None] + 0.5
    return (away - np.floor(away) - 0.5).astype(np.float32)


def _exact(values: npt.NDArray[Any]) -> Array:
    """Round away what one machine's mathematical library computes otherwise than another's."""
    return np.round(values, 5).astype(np.float32)


# --------------------------------------------------------------------------- files
def encode(path: Path, frames: npt.NDArray[Any]) -> None:
    """Write (T, H, W, 3) uint8 RGB as an mp4; the file appears when it is complete."""
    partial_path = path.with_suffix(".part")
    h264 = "libx264" in av.codecs_available
    with av.open(str(partial_path), "w", format="mp4") as container:
        stream = container.add_stream("libx264" if h264 else "mpeg4", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # one thread, as the number of threads changes the bytes
        stream.codec_context.thread_count = 1
        stream.options = (
            {"crf": str(CRF), "preset": "veryfast", "bf": "0"}
            if h264
            else {"qscale": "2", "global_quality": "236", "flags": "+qscale"}
        )
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    os.replace(partial_path, path)


def make_video(
    number: int, out: Path, split: str, seed: int, num_frames: int, size: int
) -> dict[str, Any]:
    """Write one video, unless it is there, and return its line of the index."""
    label = number % len(MOTIONS)
    name = f"{split}/{number:06d}.mp4"
    if not (out / name).is_file():
        # the class is not among what the scene is drawn from; the split is, so they share none
        scene = draw_scene(np.random.default_rng((seed, SPLITS.index(split), number)))
        motion = list(MOTIONS.values())[label]
        encode(out / name, render(scene, motion, num_frames, size))
    return {"path": name, "label": label}


def make_dataset(
    out: Path, counts: dict[str, int], *, seed: int, num_frames: int, size: int, workers: int
) -> bool:
    """Write all videos and then the index; go on where an earlier call stopped.

    Args:
        out: folder, made if need be.
        counts: videos of each split.
        seed: of everything drawn.
        num_frames: frames of a video.
        size: height and width, pixels, even.
        workers: processes.

    Returns:
        False if all was there already.

    Raises:
        ValueError: the folder holds videos made with other settings.
        OSError: no room, or no permission.
    """
    settings = {
        "version": VERSION,
        "counts": counts,
        "seed": seed,
        "num_frames": num_frames,
        "size": size,
    }
    if _was_made_with(out, settings) and (out / INDEX).is_file():
        return False
    for split in SPLITS:
        (out / split).mkdir(parents=True, exist_ok=True)
    _write(out / SETTINGS, settings)
    index: dict[str, Any] = {"classes": NAMES, "settings": settings}
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        for split in SPLITS:
            make = partial(
                make_video, out=out, split=split, seed=seed, num_frames=num_frames, size=size
            )
            numbers = range(counts[split])
            videos = pool.map(make, numbers, chunksize=16) if pool else map(make, numbers)
            index[split] = list(_with_progress(videos, counts[split], split))
    _write(out / INDEX, index)
    return True


def _was_made_with(out: Path, settings: dict[str, Any]) -> bool:
    """Return whether work on these settings has begun in the folder."""
    path = out / SETTINGS
    if not path.is_file():
        return False
    if json.loads(path.read_text(encoding="utf-8")) != settings:
        raise ValueError(
            f"{out} holds MotionShapes made with other settings; give another --out, or remove it"
        )
    return True


def _with_progress(videos: Iterator[Any], total: int, split: str) -> Iterator[Any]:
    yield from tqdm(videos, total=total, desc=f"MotionShapes {split}", unit="video")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON so that the file is there whole or not at all."""
    partial_path = path.with_suffix(".part")
    partial_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial_path, path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Make the MotionShapes videos.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--train", type=int, default=1200, help="training videos")
    parser.add_argument("--test", type=int, default=400, help="test videos")
    parser.add_argument("--size", type=int, default=64, help="height and width, pixels, even")
    parser.add_argument("--frames", type=int, default=20, help="frames of a video")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    args = parser.parse_args(argv)
    rules = [
        (args.train >= 1, "--train must be at least 1"),
        (args.test >= 1, "--test must be at least 1"),
        (args.size >= 16 and args.size % 2 == 0, "--size must be even and at least 16"),
        (args.frames >= 2, "--frames must be at least 2"),
        (args.seed >= 0, "--seed must be 0 or more"),
        (args.workers >= 1, "--workers must be at least 1"),
    ]
    for holds, rule in rules:
        if not holds:
            parser.error(rule)
    return args


def main(argv: list[str] | None = None) -> int:
    """Make the data set; say in one line how it went."""
    args = parse_args(argv)
    counts = {"train": args.train, "test": args.test}
    try:
        made = make_dataset(
            args.out,
            counts,
            seed=args.seed,
            num_frames=args.frames,
            size=args.size,
            workers=args.workers,
        )
    except (ValueError, OSError) as error:
        free = shutil.disk_usage(_existing(args.out)).free // 2**20
        print(f"prepare.py: {error} ({free} MB free there)", file=sys.stderr)
        return 1
    done = "made" if made else "already there"
    print(f"{args.train} + {args.test} MotionShapes videos in {args.out}: {done}")
    return 0


def _existing(path: Path) -> Path:
    """Return the path or the nearest folder above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


if __name__ == "__main__":
    sys.exit(main())
