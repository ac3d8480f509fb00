"""From (epoch, index) to a clip: the only Dataset, for training and evaluation alike."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vmp.data.archive import DecodeError
from vmp.data.backends import Frames
from vmp.data.decode import VideoReader
from vmp.data.frame_index import TookTooLongError
from vmp.data.records import VideoRecord
from vmp.data.sampling import PickFrames
from vmp.data.transforms import Transform

Key = tuple[int, int]
OpenVideo = Callable[[str], VideoReader]


class Failure(NamedTuple):
    """A clip that could not be decoded.

    Attributes:
        path: the video file.
        reason: what went wrong, or why it was not even tried, one line.
        video: index of the record.
        view: which of the record's views.
    """

    path: str
    reason: str
    video: int
    view: int


class Sample(NamedTuple):
    """One view of one video.

    Attributes:
        clip: (3, T, H, W) uint8 RGB; None where it could not be decoded and is not replaced.
        label: class.
        video: index of the record the clip is from.
        view: which of the record's views.
        failures: clips that could not be decoded on the way to this one.
    """

    clip: Tensor | None
    label: int
    video: int
    view: int
    failures: tuple[Failure, ...]


class Batch(NamedTuple):
    """Samples side by side.

    Attributes:
        clip: (B, 3, T, H, W) uint8 RGB. In evaluation B may be less than asked for, even 0.
        label: (B,) int64.
        video: (B,) int64.
        view: (B,) int64.
        failures: of all samples.
    """

    clip: Tensor
    label: Tensor
    video: Tensor
    view: Tensor
    failures: tuple[Failure, ...]

    def pin_memory(self) -> "Batch":
        """Return the batch in page-locked memory; DataLoader calls this."""
        return self._replace(
            clip=self.clip.pin_memory(),
            label=self.label.pin_memory(),
            video=self.video.pin_memory(),
            view=self.view.pin_memory(),
        )


class ClipDataset(Dataset[Sample]):
    """Views of videos by key (epoch, index), so that workers need no state.

    Item `index` is view `index % num_views` of video `index // num_views`. Every random choice
    about it is drawn from a generator seeded with (seed, epoch, index).

    Args:
        records: the videos.
        num_views: views of each video.
        pick_frames: (frames there are, fps, view, rng) -> frame numbers from 0, relative to the
            record's start.
        transform: scale and crop.
        seed: of all random choices.
        replacements: how many of the following items may stand in for one that can't be decoded;
            if all of them fail too, that is an error. 0: it is reported and left out.
        open_video: path -> reader. The last one stays open, and the frames of the last view are
            kept: the views of a test video follow each other and share them.
    """

    def __init__(
        self,
        records: Sequence[VideoRecord],
        *,
        num_views: int,
        pick_frames: PickFrames,
        transform: Transform,
        seed: int,
        replacements: int = 0,
        open_video: OpenVideo = VideoReader,
    ) -> None:
        self.records = list(records)
        self.num_views = num_views
        self.pick_frames = pick_frames
        self.transform = transform
        self.seed = seed
        self.replacements = replacements
        self.open_video = open_video
        self._reader: VideoReader | None = None
        self._given_up: dict[str, str] = {}  # path -> why
        self._last: tuple[tuple[object, ...], Frames] | None = None

    def __len__(self) -> int:
        return len(self.records) * self.num_views

    def __getitem__(self, key: Key) -> Sample:
        """Return the clip of (epoch, index), or of the next readable index if it is replaced.

        Raises:
            ValueError: it is to be replaced, and the following items can't be decoded either.
            ValueError: the clip is longer than its video and the policy is "error", or the crop
                is larger than the frame.
        """
        epoch, index = key
        failures: list[Failure] = []
        for step in range(self.replacements + 1):
            item = (index + step) % len(self)
            video, view = divmod(item, self.num_views)
            record = self.records[video]
            try:
                if record.excluded:
                    raise DecodeError(record.path, record.excluded)
                clip = self._clip(record, view, np.random.default_rng((self.seed, epoch, item)))
            except DecodeError as error:
                if isinstance(error, TookTooLongError):  # its other views would take as long again
                    self._given_up[record.path] = error.reason
                failures.append(Failure(record.path, error.reason, video, view))
            else:
                return Sample(clip, record.label, video, view, tuple(failures))
        if self.replacements:
            listed = "; ".join(f"{failure.path}: {failure.reason}" for failure in failures)
            raise ValueError(f"{len(failures)} clips in a row can't be decoded: {listed}")
        return Sample(None, record.label, video, view, tuple(failures))

    def _clip(self, record: VideoRecord, view: int, rng: np.random.Generator) -> Tensor:
        """Decode and cut out one clip (3, T, H, W) uint8."""
        reader = self._open(record.path)
        total = stretch(record, len(reader))
        try:
            wanted = self.pick_frames(total, reader.fps, view, rng)
        except ValueError as error:
            raise ValueError(f"{record.path}: {error}") from error
        numbers = [record.start + number for number in wanted]
        frames = self._read(reader, numbers, self.transform.short_side(rng))
        return to_clip(self.transform(frames, view, rng))

    def _open(self, path: str) -> VideoReader:
        """Return a reader of the video, the open one if it is the same."""
        if path in self._given_up:
            raise DecodeError(path, self._given_up[path])
        if self._reader is None or self._reader.path != path:
            if self._reader is not None:
                self._reader.close()
            self._reader, self._last = None, None
            self._reader = self.open_video(path)
        return self._reader

    def _read(self, reader: VideoReader, numbers: Sequence[int], short_side: int) -> Frames:
        """Return frames; of a video with several views those of the last call may be the same."""
        if self.num_views == 1:
            return reader.read(numbers, short_side)
        key = (reader.path, *numbers, short_side)
        if self._last is None or self._last[0] != key:
            self._last = None  # not two clips at a time
            self._last = (key, reader.read(numbers, short_side))
        return self._last[1]


def stretch(record: VideoRecord, num_frames: int) -> int:
    """Return how many frames of a record there are in a video of `num_frames`, at least 1.

    Raises:
        DecodeError: there is not one: it begins past the end of what decodes, or is empty.
    """
    stop = num_frames if record.stop is None else min(record.stop, num_frames)
    if stop <= record.start:
        raise DecodeError(
            record.path, f"frames [{record.start}, {record.stop}) wanted, {num_frames} decode"
        )
    return stop - record.start


def to_clip(frames: Frames) -> Tensor:
    """Turn frames (T, H, W, 3) into a clip (3, T, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(3, 0, 1, 2)))


def collate(samples: Sequence[Sample], clip_shape: tuple[int, ...]) -> Batch:
    """Put samples side by side, those without a clip left out.

    Args:
        samples: of one batch.
        clip_shape: (3, T, H, W), the shape of a batch of none.
    """
    there = [sample for sample in samples if sample.clip is not None]
    clips = [sample.clip for sample in there if sample.clip is not None]
    return Batch(
        clip=torch.stack(clips) if clips else torch.empty((0, *clip_shape), dtype=torch.uint8),
        label=torch.tensor([sample.label for sample in there], dtype=torch.int64),
        video=torch.tensor([sample.video for sample in there], dtype=torch.int64),
        view=torch.tensor([sample.view for sample in there], dtype=torch.int64),
        failures=tuple(failure for sample in samples for failure in sample.failures),
    )
