"""Small videos whose pixels tell the number of the frame."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

SIZE = (48, 64)


def picture(number: int, height: int, width: int) -> np.ndarray:
    """A picture in which 16 fields of 4 x 4 show the bits of `number`, black or white."""
    frame = np.full((height, width, 3), 128, dtype=np.uint8)
    frame[:, :, 0] = np.linspace(0, 255, width).astype(np.uint8)  # left and right differ
    cell = min(height, width) // 4
    for bit in range(16):
        row, column = divmod(bit, 4)
        value = 255 * (number >> bit & 1)
        frame[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = value
    return frame


def number_in(frame: np.ndarray) -> int:
    """Read the number back from a frame of any scale."""
    cell = min(frame.shape[:2]) // 4
    bits = 0
    for bit in range(16):
        row, column = divmod(bit, 4)
        center = frame[row * cell + cell // 2, column * cell + cell // 2]
        bits |= int(center.mean() > 127) << bit
    return bits


def write_video(
    path: Path,
    num_frames: int,
    *,
    size: tuple[int, int] = SIZE,
    codec: str = "libx264",
    rate: int = 25,
    options: dict[str, str] | None = None,
    first: int = 0,
) -> Path:
    height, width = size
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = options or {"g": "6", "crf": "10", "preset": "veryfast"}
        for number in range(first, first + num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, height, width), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video


@pytest.fixture(scope="session")
def read_number() -> Callable[[np.ndarray], int]:
    return number_in


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """11 videos of 20 frames and 3 classes; video v begins with number 100 v."""
    root = tmp_path_factory.mktemp("videos")
    lines = []
    for video in range(11):
        write_video(root / f"video {video}.mp4", 20, first=100 * video)
        lines.append(f"video {video}.mp4 {video % 3}\n")
    (root / "train.csv").write_text("".join(lines))
    (root / "test.csv").write_text("".join(lines[:5]))
    return root
