"""The pictures of the movie of `tools/demo.py`: frame, attention and prompt above the bars."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.patches import Rectangle

from vmp.data.backends import Frames
from vmp.data.sampling import clip_frames
from vmp.models import VideoModel
from vmp.prompts import MotionPrompt
from vmp.prompts.functional import to_pixels
from vmp.visualization.panel import ATTENTION_LIMIT, ATTENTION_MAP, Picture, picture_of
from vmp.visualization.style import BLUE, SKY, new_figure

# Pixels. One picture alone is drawn larger; none is wider than a screen has room for three.
HEIGHTS, WIDEST = {1: 360, 3: 240}, {1: 640, 3: 428}
NARROWEST, GAP = 480, 8
LINE, LETTER = 30, 20  # of a line of text, and of the letters in it
DPI = 100
NAMES, BARS = 0.48, 0.36  # shares of the width of a line; the rest is for the number
LETTER_SHAPE = 0.62  # width of a letter by its height, of wide ones


class PromptView:
    """What a motion prompt makes of each frame of a video and the one before it in a clip.

    Args:
        prompt: the layer.
        distance: frames of the video from one of a clip to the next, 1 or more.
        device: of the layer.
    """

    def __init__(self, prompt: MotionPrompt, distance: int, device: torch.device) -> None:
        self.prompt, self.device = prompt, device
        self._last: deque[Frames] = deque(maxlen=distance + 1)
        shades = colormaps[ATTENTION_MAP](np.linspace(0.5, 0.5 + 0.5 / ATTENTION_LIMIT, 256))
        self._colours: Picture = (255 * shades[:, :3]).round().astype(np.uint8)

    @torch.inference_mode()
    def __call__(self, frame: Frames) -> list[Picture]:
        """Return attention and prompt (H, W, 3) uint8 of the next frame, of the same size."""
        self._last.append(frame)
        # the layer takes three frames; between two that are the same there is no difference
        frames = np.stack([self._last[0], self._last[0], frame])
        clip = torch.from_numpy(frames).movedim(-1, 0).unsqueeze(0).to(self.device)
        attention = self.prompt.attention(clip)[0, -1].clamp(0, 1)
        values = self.prompt(clip)[0].float()
        pixels = to_pixels(values, self.prompt.mean, self.prompt.std)[0, :, -1].clamp(0, 1)
        return [
            self._colours[(255 * attention).round().byte().cpu().numpy()],
            (255 * pixels).round().byte().movedim(0, -1).cpu().numpy(),
        ]


def view_prompt(
    model: VideoModel, pathway: int | None, span: float, device: torch.device
) -> PromptView | None:
    """Return the view of the prompt of a pathway; None where the model has no prompt.

    Args:
        model: on the device.
        pathway: counted from 0, slowest first; None: the first that has one.
        span: frames of the video that a clip spans.
        device: of the model.

    Raises:
        ValueError: that pathway has no prompt.
    """
    if not model.prompts and pathway is None:
        return None
    name = next(iter(model.prompts)) if pathway is None else str(pathway)
    if name not in model.prompts:
        there = ", ".join(model.prompts) or "none; leave --pathway out"
        raise ValueError(f"pathway {name} has no prompt; those that have one: {there}")
    prompt, frames = model.prompts[name], model.frames[int(name)]
    assert isinstance(prompt, MotionPrompt)
    assert isinstance(frames, slice)  # those of a prompted pathway are
    seen = clip_frames(0.0, span, model.clip_frames)[frames]
    distance = max(round((seen[-1] - seen[0]) / (len(seen) - 1)), 1)
    return PromptView(prompt, distance, device)


class Panel:
    """Lays out pictures side by side, and under them the likeliest classes as bars.

    Args:
        names: of the pictures, one or three.
        size: (height, width) of the video, pixels.
        num_bars: classes that are shown.

    Attributes:
        cell: (height, width) of each picture, pixels.
    """

    def __init__(self, names: Sequence[str], size: tuple[int, int], num_bars: int) -> None:
        self.names, self.num_bars = tuple(names), num_bars
        height, width = size
        scale = min(HEIGHTS[len(names)] / height, WIDEST[len(names)] / width)
        self.cell = (max(round(height * scale), 1), max(round(width * scale), 1))
        across = len(names) * (self.cell[1] + GAP) + GAP
        self.width = max(across, NARROWEST) // 2 * 2
        self._left = (self.width - across) // 2 + GAP
        self._top = LINE
        text = (num_bars + 1) * LINE + GAP
        self._height = (self._top + self.cell[0] + GAP + text) // 2 * 2
        self._blank: Picture = np.full((self._height, self.width, 3), 255, dtype=np.uint8)
        self._blank[: self._top] = self._captions()
        self._below = self._height - text
        self._drawn: object = None

    def draw(self, pictures: Sequence[Frames], heading: str, bars: Mapping[str, float]) -> Picture:
        """Return one picture of the movie.

        Args:
            pictures: (H, W, 3) uint8 each, of any size.
            heading: a line above the bars.
            bars: probabilities by the names of the classes, the likeliest first.
        """
        if self._drawn != (heading, bars):  # they stay the same for many frames
            self._blank[self._below :] = self._text(heading, bars)
            self._drawn = (heading, dict(bars))
        canvas: Picture = self._blank.copy()
        for place, picture in enumerate(pictures):
            left = self._left + place * (self.cell[1] + GAP)
            rows = slice(self._top, self._top + self.cell[0])
            canvas[rows, left : left + self.cell[1]] = enlarge(picture, self.cell)
        return canvas

    def _captions(self) -> Picture:
        figure, write = self._canvas(LINE)
        for place, name in enumerate(self.names):
            left = self._left + place * (self.cell[1] + GAP)
            write(left + self.cell[1] / 2, LINE / 2, name, ha="center")
        return picture_of(figure, DPI)

    def _text(self, heading: str, bars: Mapping[str, float]) -> Picture:
        figure, write = self._canvas(self._height - self._below)
        inner = self.width - 2 * GAP
        write(GAP, LINE / 2, heading)
        for place, (name, share) in enumerate(bars.items()):
            middle = (place + 1.5) * LINE
            write(GAP, middle, shorten(name, NAMES * inner))
            figure.add_artist(self._bar(figure, middle, 1.0, "#eeeeee"))
            figure.add_artist(self._bar(figure, middle, share, SKY if place else BLUE))
            write(self.width - GAP, middle, f"{100 * share:.1f} %", ha="right")
        return picture_of(figure, DPI)

    def _canvas(self, height: int) -> tuple[Any, Any]:
        """Return a figure of so many pixels, and what writes in it at pixels from the top left."""
        figure = new_figure(self.width / DPI, height / DPI)
        figure.set_layout_engine("none")

        def write(x: float, y: float, text: str, ha: str = "left") -> None:
            made = figure.text(x / self.width, 1 - y / height, text, ha=ha, va="center_baseline")
            made.set_fontsize(LETTER * 72 / DPI)
            made.set_parse_math(False)  # a name may have dollars in it

        return figure, write

    def _bar(self, figure: Any, middle: float, share: float, colour: str) -> Any:
        height = figure.get_figheight() * DPI
        inner = self.width - 2 * GAP
        corner = (GAP + NAMES * inner) / self.width, 1 - (middle + 0.3 * LINE) / height
        size = share * BARS * inner / self.width, 0.6 * LINE / height
        return Rectangle(corner, *size, color=colour, linewidth=0)


def shorten(name: str, width: float) -> str:
    """Return as much of a name as so many pixels take, for sure."""
    letters = int(width / (LETTER * LETTER_SHAPE))
    return name if len(name) <= letters else f"{name[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"


def enlarge(picture: Frames, size: tuple[int, int]) -> Frames:
    """Return a picture (H, W, 3) at another size; its pixels stay what they are."""
    for axis, (to, of) in enumerate(zip(size, picture.shape[:2], strict=True)):
        if to != of:
            picture = picture.take(np.arange(to) * of // to, axis)
    return picture
