"""What `tools/demo.py` does: predicts, prints, and writes movies and JSON."""

import argparse
import bisect
import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

import simplejson
import torch
from demo import PIPE, Job
from demo_panel import Panel, view_prompt

from vmp.config import load_cfg
from vmp.data import DecodeError
from vmp.data.frame_index import find_index
from vmp.data.stream import FrameStream, Scaler, Shown, open_camera, open_file, open_pipe
from vmp.engine.predictor import Prediction, Predictor, build_predictor
from vmp.engine.progress import progress_bar
from vmp.engine.trained import find_checkpoint, find_config
from vmp.utils.files import sha256_of, write_atomically, write_text
from vmp.visualization.movie import MovieWriter

# Of the encoder, which is to keep up with a camera.
PRESET = "veryfast"
PIPED = "; an MP4 in a pipe must have its index in front (faststart)"


def run(args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """Predict for every video; one that can't be read does not keep the others from it.

    Args:
        args: of the command line.
        jobs: at least one.

    Raises:
        ValueError: the model can't be made, or a video can't be read.
    """
    device = pick_device(args.device)
    checkpoint = find_checkpoint(Path(args.checkpoint))
    cfg = load_cfg(args.cfg or find_config(checkpoint), args.opts)
    if "NUM_GPUS" in args.opts[::2]:
        raise ValueError("NUM_GPUS is given; --device says what the demo runs on")
    predictor = build_predictor(cfg, checkpoint, device)
    demo = Demo(predictor, args)
    print(f"{checkpoint}, {len(predictor.class_names)} classes, on {device}")
    videos: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    for number, job in enumerate(jobs, 1):
        name = "the pipe" if job.video == PIPE else job.video
        print(f"[{number}/{len(jobs)}] {name}" if len(jobs) > 1 else name, flush=True)
        try:
            found = demo.watch(job) if job.is_stream else demo.read(job)
            videos.append({"video": job.video, "predictions": found})
        except DecodeError as error:
            if len(jobs) == 1:
                hint = PIPED if job.video == PIPE else ""
                raise ValueError(f"{error}; check that it is a video{hint}") from error
            print(error, file=sys.stderr)
            unreadable.append({"video": job.video, "reason": error.reason})
    if args.json is not None:
        about = {"checkpoint": str(checkpoint), "checkpoint_sha256": sha256_of(checkpoint)}
        content = about | {"window": args.window, "classes": predictor.class_names}
        content |= {"videos": videos, "unreadable": unreadable}
        write_text(args.json, simplejson.dumps(content, indent=2) + "\n")
        print(f"wrote {args.json}")
    if unreadable:
        raise ValueError(f"{len(unreadable)} of {len(jobs)} videos can't be read, as said above")


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" is a GPU where there is one.

    Raises:
        ValueError: "cuda" where there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError("--device cuda: PyTorch finds no GPU here; give --device cpu or auto")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


class Demo:
    """A predictor and what is made of its predictions.

    Args:
        predictor: the model.
        args: of the command line.
    """

    def __init__(self, predictor: Predictor, args: argparse.Namespace) -> None:
        self.predictor = predictor
        self.window, self.stride = args.window, args.stride
        self.topk, self.pathway = args.topk, args.pathway
        self.seconds, self.keep = args.seconds, args.json is not None
        self.view = partial(view_prompt, predictor.model, args.pathway, device=predictor.device)
        self.view(span=1.0)  # a wrong pathway is told at once

    def read(self, job: Job) -> list[dict[str, Any]]:
        """Predict for a file, then draw its movie; return the predictions for JSON."""
        if self.window == "whole":
            made = iter([self.predictor.whole(job.video)])
        else:
            made = self.predictor.slide(job.video, self.stride)
        predictions = []
        for prediction in made:
            self.tell(prediction)
            predictions.append(prediction)
        if job.movie is not None:
            write_atomically(job.movie, lambda file: self._draw(job.video, file, predictions))
            print(f"wrote {job.movie}")
        return [self.describe(prediction) for prediction in predictions]

    def _draw(self, path: str, file: BinaryIO, predictions: Sequence[Prediction]) -> None:
        """Draw each frame with the prediction of the window that has it nearest to its middle."""
        middles = [prediction.start + prediction.stop for prediction in predictions]
        changes = [(one + other) / 4 for one, other in zip(middles, middles[1:], strict=False)]
        with open_file(path) as stream, Film(self, stream, file) as film:
            bar = progress_bar(find_index(path).num_frames, "movie")
            for shown in stream.frames(film.add_sound):
                film.add(shown, predictions[bisect.bisect(changes, shown.seconds)])
                bar.update()
            bar.close()

    def watch(self, job: Job) -> list[dict[str, Any]]:
        """Predict for a pipe or camera while it comes, and draw it; return the predictions."""
        with open_stream(job.video) as stream:
            if job.movie is None:
                return self._follow(stream, None)
            kept: list[dict[str, Any]] = []
            write_atomically(job.movie, lambda file: kept.extend(self._film(stream, file)))
            print(f"wrote {job.movie}")
            return kept

    def _film(self, stream: FrameStream, file: BinaryIO) -> list[dict[str, Any]]:
        with Film(self, stream, file) as film:
            return self._follow(stream, film)

    def _follow(self, stream: FrameStream, film: "Film | None") -> list[dict[str, Any]]:
        scale = self.predictor.scaler(stream.name)
        windows = self.predictor.windows(stream.fps, self.stride)
        late = lateness(stream, windows.step / stream.fps)
        latest: Prediction | None = None
        kept: list[dict[str, Any]] = []
        with contextlib.suppress(KeyboardInterrupt):  # the way to end a camera; all ends well
            for shown in stream.frames(film.add_sound if film is not None else None):
                if self.seconds is not None and shown.seconds >= self.seconds:
                    break
                whole = windows.add(shown.number, shown.seconds, scale(shown.frame))
                # a model too slow for a camera leaves windows out, to show what is now
                for window in [] if late(shown) else whole:
                    latest = self._take(self.predictor.predict(window), kept)
                if film is not None:
                    film.add(shown, latest)
        for window in windows.rest():
            self._take(self.predictor.predict(window), kept)
        return kept

    def _take(self, prediction: Prediction, kept: list[dict[str, Any]]) -> Prediction:
        self.tell(prediction)
        if self.keep:
            kept.append(self.describe(prediction))
        return prediction

    def top(self, prediction: Prediction) -> list[tuple[int, float]]:
        """Return (label, probability) of the likeliest classes, these first."""
        count = min(self.topk, len(prediction.scores))
        values, labels = prediction.scores.topk(count)
        return list(zip(labels.tolist(), values.tolist(), strict=True))

    def tell(self, prediction: Prediction) -> None:
        """Print a line."""
        names = self.predictor.class_names
        shares = [f"{names[label]} {100 * share:.1f} %" for label, share in self.top(prediction)]
        print(f"{span_of(prediction):>19}  {',  '.join(shares)}", flush=True)

    def describe(self, prediction: Prediction) -> dict[str, Any]:
        """Return a prediction for JSON."""
        names = self.predictor.class_names
        top = [
            {"label": label, "name": names[label], "probability": share}
            for label, share in self.top(prediction)
        ]
        return {"start": prediction.start, "stop": prediction.stop, "top": top}


class Film:
    """The movie of one video, drawn frame by frame.

    Args:
        demo: whose predictions it shows.
        stream: of the video.
        file: to write to.
    """

    def __init__(self, demo: Demo, stream: FrameStream, file: BinaryIO) -> None:
        self._demo, self._stream = demo, stream
        predictor = demo.predictor
        self._view = demo.view(span=predictor.clips.span(stream.fps))
        self._scale = predictor.scaler(stream.name)
        self._panel: tuple[Panel, Scaler] | None = None
        self._writer = MovieWriter(file, stream.fps, sound=stream.sound, preset=PRESET)

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)

    def add_sound(self, packet: Any) -> None:
        """Take a packet of sound along."""
        self._writer.add_sound(packet)

    def add(self, shown: Shown, prediction: Prediction | None) -> None:
        """Draw a frame and what is predicted of it."""
        panel, scale = self._panel or self._lay_out(shown)
        pictures = [scale(shown.frame)]
        if self._view is not None:
            pictures += self._view(self._scale(shown.frame))
        heading, bars = "not yet a whole window", {}
        if prediction is not None:
            heading = span_of(prediction)
            names = self._demo.predictor.class_names
            bars = {names[label]: share for label, share in self._demo.top(prediction)}
        self._writer.add(panel.draw(pictures, heading, bars), shown.seconds)

    def _lay_out(self, shown: Shown) -> tuple[Panel, Scaler]:
        names = ["frame"] if self._view is None else ["frame", "attention", "prompt"]
        count = min(self._demo.topk, len(self._demo.predictor.class_names))
        frame = shown.frame
        size = (frame.height, frame.width)
        panel = Panel(names, size[::-1] if round(frame.rotation / 90) % 2 else size, count)
        self._panel = panel, Scaler(self._stream.name, min(panel.cell))
        return self._panel


def span_of(prediction: Prediction) -> str:
    """Return when the stretch of a prediction begins and ends."""
    return f"{prediction.start:.1f} to {prediction.stop:.1f} s"


def open_stream(video: str) -> FrameStream:
    """Open a pipe or camera.

    Raises:
        DecodeError: it gives no video.
        ValueError: there is no pipe.
    """
    if video != PIPE:
        return open_camera(video)
    if sys.stdin.isatty():
        raise ValueError("- reads a pipe: cat video.mkv | python tools/demo.py ... -")
    return open_pipe(cast(BinaryIO, Interruptible(sys.stdin.buffer)), "the pipe")


class Interruptible:
    """A pipe that ends with Ctrl-C: FFmpeg, which waits for its bytes, knows no other way.

    Args:
        file: open for reading.
    """

    def __init__(self, file: Any) -> None:
        self._file, self._ended = file, False

    def read(self, size: int) -> bytes:
        """Return what is there, at least a byte, up to `size`; b"" at the end."""
        try:
            return b"" if self._ended else bytes(self._file.read1(size))
        except KeyboardInterrupt:
            self._ended = True
            return b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def lateness(stream: FrameStream, seconds: float) -> Callable[[Shown], bool]:
    """Return what says if a frame of a camera comes so many seconds after it was taken."""
    began = time.monotonic()

    def late(shown: Shown) -> bool:
        nonlocal began
        if not shown.number:
            began = time.monotonic()
        return stream.live and time.monotonic() - began - shown.seconds > seconds

    return late
