"""Pictures one after another as an MP4 that browsers and slides play."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av

from vmp.utils.files import write_atomically
from vmp.visualization.panel import Picture

CRF = 18


def write_movie(pictures: Iterable[Picture], path: str | Path, fps: float) -> None:
    """Write pictures (H, W, 3) uint8, of one even height and width, whole or not at all.

    Args:
        pictures: at least one.
        path: of the MP4.
        fps: pictures a second.

    Raises:
        OSError: it can't be written.
    """
    write_atomically(path, lambda file: _encode(pictures, file, fps))


def _encode(pictures: Iterable[Picture], file: BinaryIO, fps: float) -> None:
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(file, "w", format="mp4") as container:
        stream: Any = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate, options={"crf": str(CRF)})
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
