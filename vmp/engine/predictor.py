"""Predictions for videos that are in no data set: whole, or a window after the other."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from vmp.data import DecodeError, VideoReader, VideoRecord
from vmp.data.build import build_test_view, build_view_counts
from vmp.data.clips import ClipDataset, OpenVideo, to_clip
from vmp.data.sampling import SpacedClips
from vmp.data.stream import Scaler, open_file
from vmp.data.transforms import ViewCrop
from vmp.data.windows import SlidingWindows, Window
from vmp.engine.evaluate import computing_with
from vmp.engine.step import autocast
from vmp.engine.trained import build_trained
from vmp.metrics import ensemble_views
from vmp.models import VideoModel


class Prediction(NamedTuple):
    """What a model says of a stretch of a video.

    Attributes:
        scores: (C,) float64 probabilities.
        start: seconds at which the stretch begins.
        stop: seconds at which it ends.
    """

    scores: Tensor
    start: float
    stop: float


class Predictor:
    """A trained model and what it is to be shown: the frames, sizes and crops of its test.

    Args:
        model: in evaluation mode, on its device.
        class_names: index = label.
        clips: which frames a clip has, and how many clips a whole video.
        crop: of its views.
        device: where the model is.
        open_video: path -> reader.
        batch_size: clips of one forward pass.
        precision: of autocast.
        ensemble: what is averaged over views, "softmax" or "logits".
        threads: CPU threads to compute with. Scores depend on these and on the size of the batch
            in the last bits.
    """

    def __init__(
        self,
        model: VideoModel,
        *,
        class_names: Sequence[str],
        clips: SpacedClips,
        crop: ViewCrop,
        device: torch.device | str = "cpu",
        open_video: OpenVideo = VideoReader,
        batch_size: int = 8,
        precision: torch.dtype = torch.float32,
        ensemble: str = "softmax",
        threads: int = 1,
    ) -> None:
        self.model = model
        self.class_names = tuple(class_names)
        self.clips, self.crop = clips, crop
        self.device = torch.device(device)
        self.open_video = open_video
        self.batch_size = batch_size
        self.precision = precision
        self.ensemble = ensemble
        self.threads = threads

    def whole(self, path: str | Path) -> Prediction:
        """Predict for a video file what a test does: the mean over all its views.

        Raises:
            DecodeError: the file is missing, is no video, or a view of it does not decode.
            ValueError: it is shorter than a clip, and DATA.SHORT_CLIP is "error".
        """
        num_views = self.clips.num_clips * self.crop.num_crops
        dataset = ClipDataset(
            [VideoRecord(str(path), label=0)],
            num_views=num_views,
            pick_frames=self.clips,
            transform=self.crop,
            seed=0,
            replacements=0,
            open_video=self.open_video,
        )
        views = []
        for view in range(num_views):
            sample = dataset[0, view]
            if sample.clip is None:
                raise DecodeError(str(path), sample.failures[0].reason)
            views.append(sample.clip)
        with self.open_video(str(path)) as reader:
            seconds = len(reader) / reader.fps
        return Prediction(self.score(views), 0.0, seconds)

    def slide(self, path: str | Path, stride: float | None = None) -> Iterator[Prediction]:
        """Predict for windows of a video file, each of the length of a clip.

        Args:
            path: of the file.
            stride: seconds from one window to the next; None: half of what it spans.

        Raises:
            DecodeError: the file is missing, is no video, or not one frame decodes.
            ValueError: the stride is not above 0, or the video is shorter than a clip, and
                DATA.SHORT_CLIP is "error".
        """
        with open_file(str(path)) as stream:
            scale, windows = self.scaler(stream.name), self.windows(stream.fps, stride)
            for shown in stream.frames():
                whole = windows.add(shown.number, shown.seconds, scale(shown.frame))
                yield from map(self.predict, whole)
            try:
                left = windows.rest()
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            yield from map(self.predict, left)

    def scaler(self, name: str) -> Scaler:
        """Return what makes the RGB that `windows` takes of the frames of a stream."""
        return Scaler(name, self.crop.size)

    def windows(self, fps: float, stride: float | None = None) -> SlidingWindows:
        """Return what makes windows, for `predict`, of the frames of a stream.

        Raises:
            ValueError: the stride is not above 0.
        """
        return SlidingWindows(self.clips, fps, stride)

    def predict(self, window: Window) -> Prediction:
        """Predict for one window: the mean over its crops."""
        rng = np.random.default_rng(0)  # the crops of a test draw nothing
        views = [to_clip(self.crop(window.frames, v, rng)) for v in range(self.crop.num_crops)]
        return Prediction(self.score(views), window.start, window.stop)

    @torch.inference_mode()
    def score(self, views: Sequence[Tensor]) -> Tensor:
        """Return (C,) float64, the mean over clips (3, T, H, W) uint8 of what the model says."""
        logits = []
        with computing_with(self.threads), autocast(self.device, self.precision):
            for first in range(0, len(views), self.batch_size):
                batch = torch.stack(list(views[first : first + self.batch_size]))
                logits.append(self.model(batch.to(self.device)).logits.float().cpu())
        values = torch.cat(logits).double()
        averaged = values.softmax(1) if self.ensemble == "softmax" else values
        one = torch.zeros(len(values), dtype=torch.int64)
        mean = ensemble_views(averaged, one, torch.arange(len(values)), 1, len(values)).scores
        return (mean if self.ensemble == "softmax" else mean.softmax(1))[0]


def build_predictor(
    cfg: CfgNode, checkpoint: Path | str, device: torch.device | str = "cpu"
) -> Predictor:
    """Make the predictor of a config with the weights of a file.

    Args:
        cfg: of the training, or of the recipe that a public checkpoint goes with.
        checkpoint: a file of weights, of this program or of one that it knows.
        device: of the model.

    Raises:
        ValueError: as `build_trained`.
    """
    trained = build_trained(cfg, checkpoint, device)
    clips, crop = build_test_view(cfg, trained.model.clip_frames, *build_view_counts(cfg))
    assert isinstance(clips, SpacedClips)
    assert isinstance(crop, ViewCrop)
    return Predictor(
        trained.model,
        class_names=trained.class_names,
        clips=clips,
        crop=crop,
        device=device,
        # no index is left on the disk, beside the user's own videos
        open_video=partial(
            VideoReader, backend=cfg.DATA.DECODING_BACKEND, timeout=cfg.DATA.DECODE_TIMEOUT
        ),
        batch_size=cfg.TEST.BATCH_SIZE,
        precision=getattr(torch, cfg.TRAIN.PRECISION),
        ensemble=cfg.TEST.ENSEMBLE,
        threads=cfg.TEST.CPU_THREADS,
    )
