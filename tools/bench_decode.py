"""Ways to get a clip out of a video, for `tools/bench.py decode` and `loader`.

The videos are made here, as the three data sets of the paper have them. The plain way is that of
PySlowFast's PyAV loader, written from its description.
"""

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from vmp.data import VideoReader
from vmp.data.archive import locate
from vmp.data.clips import ClipDataset
from vmp.data.frame_index import Deadline, find_index, make_index
from vmp.data.loader import ClipLoader, TrainPlan
from vmp.data.records import VideoRecord
from vmp.data.sampling import RandomClip, clip_frames, clip_span
from vmp.data.transforms import RandomCrop
from vmp.utils.files import write_atomically

SCALES, CROP, TARGET_FPS = (256, 320), 224, 30.0
MEAN, STD = 0.45, 0.225


class Format(NamedTuple):
    """Videos like those of a data set.

    Attributes:
        name: of the data set.
        suffix: of the container.
        codec: encoder.
        size: (height, width).
        rate: frames per second.
        num_frames: of a video.
        gop: frames from one key frame to the next.
        bit_rate: bits per second.
    """

    name: str
    suffix: str
    codec: str
    size: tuple[int, int]
    rate: Fraction
    num_frames: int
    gop: int
    bit_rate: int


# Bit rates: size over length of the releases, see datasets/*/README.md.
FORMATS = {
    "hmdb": Format("HMDB-51", "avi", "mpeg4", (240, 320), Fraction(30), 96, 12, 800_000),
    "finegym": Format("FineGym", "mp4", "libx264", (720, 1280), Fraction(25), 500, 125, 1_500_000),
    "mpii": Format("MPII", "avi", "mpeg4", (1224, 1624), Fraction(147, 5), 400, 12, 2_500_000),
}
SAMPLINGS = {"8x8": (8, 8), "32x2": (32, 2), "8x32": (8, 32)}  # frames, rate


# --------------------------------------------------------------------------- videos
def make_videos(folder: Path, kind: str, count: int) -> list[Path]:
    """Write `count` videos of a format, those that are there already left alone."""
    form = FORMATS[kind]
    paths = [folder / f"{kind}_{number}.{form.suffix}" for number in range(count)]
    for number, path in enumerate(tqdm(paths, desc=f"make {kind}", leave=False)):
        if not path.exists():
            write_atomically(path, partial(_encode, form=form, seed=number))
    return paths


def _encode(file: Any, form: Format, seed: int) -> None:
    container_format = {"avi": "avi", "mp4": "mp4"}[form.suffix]
    with av.open(file, "w", format=container_format) as container:
        stream = container.add_stream(form.codec, rate=form.rate)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = form.size
        stream.pix_fmt, stream.bit_rate = "yuv420p", form.bit_rate
        stream.options = {"g": str(form.gop)}
        for picture in _pictures(form, seed):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _pictures(form: Format, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield a textured scene that the camera barely moves over, with five things moving in it."""
    rng = np.random.default_rng(seed)
    height, width = form.size
    scene = _texture(rng, height + 16, width + 16)
    things = [_texture(rng, height // 5, width // 8) for _ in range(5)]
    places = rng.uniform(0, 0.8, (5, 2))
    speeds = rng.uniform(-0.01, 0.01, (5, 2))
    for number in range(form.num_frames):
        shift = round(8 + 6 * np.sin(number / 20))
        picture = scene[shift : shift + height, shift : shift + width].copy()
        for thing, place, speed in zip(things, places, speeds, strict=True):
            # there and back again
            where = np.abs((place + speed * number) % 1.6 - 0.8)
            top, left = (where * [height, width]).astype(int)
            part = picture[top : top + thing.shape[0], left : left + thing.shape[1]]
            part[:] = thing[: part.shape[0], : part.shape[1]]
        noise = rng.integers(-3, 4, (height, width, 1), dtype=np.int8)
        yield np.clip(picture.astype(np.int16) + noise, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return a picture whose detail falls with its frequency, as in photographs."""
    total = torch.zeros(1, 3, height, width)
    for octave in range(2, 9):
        coarse = torch.from_numpy(rng.normal(size=(1, 3, 2**octave, 2**octave)))
        total += F.interpolate(coarse.float(), (height, width), mode="bicubic") / 2 ** (octave / 2)
    spread = 255 * torch.sigmoid(total)
    return spread[0].permute(1, 2, 0).byte().numpy()


# --------------------------------------------------------------------------- ways
class Draw(NamedTuple):
    """A clip to be taken.

    Attributes:
        path: the video.
        start: where in the video the clip starts, share of the possible starts, 0 to 1.
        num_frames: frames of the clip.
        rate: distance of its frames at 30 fps.
        short_side: scale, pixels.
        top: place of the crop, share of the possible places; also from the left.
    """

    path: str
    start: float
    num_frames: int
    rate: int
    short_side: int
    top: float


def draw(path: str, sampling: str, rng: np.random.Generator) -> Draw:
    """Draw a training clip of a video."""
    num_frames, rate = SAMPLINGS[sampling]
    scale = int(rng.integers(SCALES[0], SCALES[1] + 1))
    return Draw(path, float(rng.random()), num_frames, rate, scale, float(rng.random()))


def plain_clip(wanted: Draw) -> Tensor:
    """Return (3, T, 224, 224) float32 the way PySlowFast's PyAV loader makes it.

    All frames of the span are turned into RGB at full size and stacked, then some are chosen,
    normalised as float32, scaled and cropped.
    """
    with av.open(wanted.path) as container:
        stream = container.streams.video[0]
        total, length = stream.frames, stream.duration
        assert total
        assert length is not None
        assert stream.average_rate is not None
        span = clip_span(wanted.num_frames, wanted.rate, float(stream.average_rate), TARGET_FPS)
        first = wanted.start * max(total - span, 0)
        per_frame = length / total
        begin, end = int(first * per_frame), int((first + span - 1) * per_frame)
        container.seek(max(begin - 1024, 0), stream=stream)  # its margin, in units of the stream
        frames = {}
        for frame in container.decode(stream):
            assert frame.pts is not None
            if frame.pts >= begin:
                frames[frame.pts] = frame
            if frame.pts > end:
                break
        pictures = [frames[pts].to_rgb().to_ndarray() for pts in sorted(frames)]
    clip = torch.as_tensor(np.stack(pictures))
    places = torch.linspace(0, min(span, len(clip)) - 1, wanted.num_frames).clamp(0, len(clip) - 1)
    values = (clip[places.long()].float() / 255 - MEAN) / STD
    return _scale_and_crop(values.permute(3, 0, 1, 2), wanted)


def _scale_and_crop(values: Tensor, wanted: Draw) -> Tensor:
    height, width = values.shape[-2:]
    factor = wanted.short_side / min(height, width)
    size = [max(int(side * factor), wanted.short_side) for side in (height, width)]
    scaled = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
    top, left = (round(wanted.top * (side - CROP)) for side in size)
    return scaled[:, :, top : top + CROP, left : left + CROP].contiguous()


def numbers_of(wanted: Draw) -> list[int]:
    """Return the frame numbers of a clip."""
    index = find_index(wanted.path)
    span = clip_span(wanted.num_frames, wanted.rate, index.fps, TARGET_FPS)
    numbers = clip_frames(wanted.start * max(index.num_frames - span, 0), span, wanted.num_frames)
    return [min(number, index.num_frames - 1) for number in numbers]


def our_clip(wanted: Draw, backend: str) -> Tensor:
    """Return (3, T, 224, 224) uint8, read as the loader does; floats are made on the device."""
    with VideoReader(wanted.path, backend) as reader:
        frames = reader.read(numbers_of(wanted), wanted.short_side)
    top, left = (round(wanted.top * (side - CROP)) for side in frames.shape[1:3])
    cut = frames[:, top : top + CROP, left : left + CROP]
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(3, 0, 1, 2)))


def floor_of_clip(wanted: Draw) -> int:
    """Decode from the key frame before the clip to its last frame, and nothing else."""
    index, numbers = find_index(wanted.path), numbers_of(wanted)
    place = int(np.searchsorted(index.keys, numbers[0], side="right")) - 1
    last = int(index.stamps[numbers[-1]])
    decoded = 0
    with av.open(wanted.path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        if place > 0:
            container.seek(int(index.stamps[index.keys[place]]), stream=stream)
        for frame in container.decode(stream):
            decoded += 1
            if frame.pts is None or frame.pts >= last:
                break
    return decoded


def index_once(wanted: Draw) -> None:
    """Find out which frames a video has, as a worker does the first time it meets it."""
    make_index(locate(wanted.path), Deadline(60.0))


def ways(backends: list[str]) -> dict[str, Callable[[Draw], Any]]:
    """Return what is measured side by side."""
    ours = {backend: partial(our_clip, backend=backend) for backend in backends}
    return {"plain": plain_clip, **ours, "floor": floor_of_clip, "index": index_once}


def measure(
    paths: list[Path], sampling: str, clips: int, backends: list[str], seed: int = 0
) -> dict[str, list[float]]:
    """Return the CPU seconds of each clip, by way; the ways take turns, clip by clip."""
    rng = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {}
    draws = [draw(str(paths[i % len(paths)]), sampling, rng) for i in range(clips + 2)]
    for number, wanted in enumerate(tqdm(draws, desc=sampling, leave=False)):
        for name, way in ways(backends).items():
            began = time.process_time()
            way(wanted)
            if number >= 2:  # the first two warm up
                seconds.setdefault(name, []).append(time.process_time() - began)
    return seconds


# --------------------------------------------------------------------------- loaders
class PlainDataset(Dataset[Tensor]):
    """The plain way as a Dataset."""

    def __init__(self, paths: list[Path], sampling: str, length: int) -> None:
        self.paths, self.sampling, self.length = paths, sampling, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> Tensor:
        """Return clip `item`, (3, T, 224, 224) float32."""
        path = self.paths[item % len(self.paths)]
        return plain_clip(draw(str(path), self.sampling, np.random.default_rng(item)))


def plain_loader(paths: list[Path], sampling: str, clips: int, workers: int) -> Iterator[Tensor]:
    """Return batches of 8 the plain way."""
    dataset = PlainDataset(paths, sampling, clips)
    return iter(DataLoader(dataset, batch_size=8, num_workers=workers, worker_init_fn=_one_thread))


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def our_loader(paths: list[Path], sampling: str, clips: int, workers: int) -> Iterator[Tensor]:
    """Return batches of 8 of our loader."""
    num_frames, rate = SAMPLINGS[sampling]
    records = [VideoRecord(str(paths[item % len(paths)]), 0) for item in range(clips)]
    dataset = ClipDataset(
        records,
        num_views=1,
        pick_frames=RandomClip(num_frames, rate, TARGET_FPS, "hold"),
        transform=RandomCrop(SCALES, CROP, flip=True),
        seed=0,
    )
    loader = ClipLoader(
        dataset,
        TrainPlan(clips, 8, seed=0),
        clip_shape=(3, num_frames, CROP, CROP),
        class_names=("any",),
        num_workers=workers,
    )
    return (batch.clip for batch in loader.epoch(0))
