"""What the page of `tools/explorer.py` starts with, and what it answers; no Gradio in here."""

import argparse
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import explorer_layout as lay
from explorer import MOST_FRAMES
from explorer_view import (
    Clip,
    Numbers,
    Video,
    Window,
    address,
    constants,
    m_of,
    make_norm,
    n_of,
    number_of,
    numbers_of,
    presets,
    recipe,
    slope_and_shift,
    span_of,
)
from reproduce_cells import CONFIGS
from visualize import FRAMES, STRIDE
from visualize_clip import fixed_norm

from vmp.config import load_cfg
from vmp.data import VideoReader
from vmp.prompts import MotionPrompt

START = "MPII Cooking 2"  # the one preset that holds the background back
REACH = 4.0  # of the sliders for m and n
OWN = "own numbers"
SIGMOID = {"m": "m", "n": "n", "a": "slope a(m)", "b": "shift b(n)"}
_ALL = ("norm", *SIGMOID, "value")
# What else moves when a control does. Not the control itself: it would be taken from the hand.
FOLLOWS: dict[str, tuple[str, ...]] = {
    "preset": _ALL,
    "norm": ("preset", *_ALL[1:]),
    "m": ("preset", "a"),
    "n": ("preset", "b"),
    "a": ("preset", "m"),
    "b": ("preset", "n"),
    "value": ("preset",),
    **dict.fromkeys(Window._fields, ()),
}


class Start(NamedTuple):
    """What a page starts with.

    Attributes:
        video: the video.
        numbers: of the power normalisation.
        window: which frames.
        presets: numbers by the name of who has learned them.
        preset: the one shown first.
        base: the recipe that the YAML continues.
    """

    video: Video
    numbers: Numbers
    window: Window
    presets: dict[str, Numbers]
    preset: str
    base: Path


def build_start(args: argparse.Namespace, reader: VideoReader) -> Start:
    """Return what the command line says.

    Raises:
        ValueError: the checkpoint has no prompt, the recipe is wrong, or the video too short.
    """
    layer, name, base = MotionPrompt(fixed_norm(1.0, 0.0)), START, args.cfg
    stride, steps = args.stride or STRIDE, args.frames or FRAMES
    known = {key: Numbers("sigmoid", *pair, 0.0) for key, pair in presets().items()}
    if args.checkpoint:
        # the models take seconds to import
        from visualize_trained import build_trained

        from vmp.engine.trained import find_checkpoint, find_config

        trained = build_trained(
            Path(args.checkpoint), args.cfg, args.pathway, args.start, reader.fps
        )
        layer, name = trained.prompt, f"learned by {trained.name}"
        known = {name: numbers_of(layer.power_norm)} | known
        seen = trained.numbers
        steps = args.frames or min(len(seen) - 1, MOST_FRAMES)
        stride = args.stride or max(1, round((seen[-1] - seen[0]) / (len(seen) - 1)))
        base = base or find_config(find_checkpoint(Path(args.checkpoint)))
    elif base:
        load_cfg(base)  # what is wrong with it is said now, not on the page
    base = Path(base or CONFIGS / "MotionShapes" / "X3D_XS.yaml")
    video = Video(reader, layer, args.short_side)
    return Start(video, known[name], Window(args.start, stride, 1, steps), known, name, base)


class Answers:
    """What the page shows for the numbers it sends; each call stands alone.

    Args:
        start: what the page starts with.
    """

    def __init__(self, start: Start) -> None:
        self.start, self.video = start, start.video
        self.fixed = constants(start.video.layer.power_norm)
        largest = max(abs(start.numbers.m), abs(start.numbers.n))
        self.reach = max(REACH, float(math.ceil(largest)))

    def sliders(self, numbers: Numbers) -> dict[str, dict[str, Any]]:
        """Return what the sliders of a power normalisation are like, by name."""
        a, b = slope_and_shift(numbers.m, numbers.n, self.fixed)
        # the ends of a and b are rounded inwards, so that some m and n give them
        steep, flat = (slope_and_shift(m, 0.0, self.fixed)[0] for m in (0.0, self.reach))
        steep, flat = math.floor(1e3 * steep) / 1e3, math.ceil(1e3 * flat) / 1e3
        highest = math.floor(1e3 * slope_and_shift(0.0, self.reach, self.fixed)[1]) / 1e3
        ranges = {"m": (-self.reach, self.reach), "n": (-self.reach, self.reach)}
        ranges |= {"a": (flat, steep), "b": (-highest, highest)}
        values = {"m": numbers.m, "n": numbers.n, "a": a, "b": b}
        made: dict[str, dict[str, Any]] = {}
        for name, (low, high) in ranges.items():
            value = round(min(max(values[name], low), high), 4)
            made[name] = {"minimum": low, "maximum": high, "value": value, "step": 0.001}
            made[name] |= {"label": SIGMOID[name], "visible": numbers.norm == "sigmoid"}
        return made | {"value": _value_slider(numbers)}

    def change(self, name: str, to: Any, numbers: Numbers, window: Window) -> dict[str, Any]:
        """Return what is new when a control was moved: the view, and what FOLLOWS of it.

        Args:
            name: of the control.
            to: where it is now.
            numbers: where those of the power normalisation are.
            window: which frames.
        """
        if name in Window._fields:
            return {"view": self.look(numbers, window, moved=True)}
        if name == "a":
            m = m_of(to, self.fixed, near=numbers.m, reach=self.reach)
            numbers = numbers._replace(m=m)
        elif name == "b":
            numbers = numbers._replace(n=n_of(to, self.fixed, reach=self.reach))
        elif name == "norm":
            numbers = numbers._replace(value=number_of(to)[1])
        elif name == "preset":
            numbers = self.start.presets.get(to, numbers)
        like = self.sliders(numbers)
        like |= {"preset": {"value": OWN}, "norm": {"value": numbers.norm}}
        return {"view": self.look(numbers, window)} | {each: like[each] for each in FOLLOWS[name]}

    def look(self, numbers: Numbers, window: Window, *, moved: bool = False) -> dict[str, Any]:
        """Return what is new on the page.

        Args:
            numbers: of the power normalisation.
            window: which frames.
            moved: these are new too, not the numbers alone.
        """
        clip = self.video.clip(window)
        made = self.video.make(clip, make_norm(numbers, self.fixed))
        parts = dict(made.parts)
        parts["curve"] = lay.curve_picture(made.curve, clip.histogram, made.facts)
        parts["facts"] = lay.facts_table(self._facts(clip, made.facts))
        if not moved:
            return {"parts": parts}
        height, width = clip.frames.shape[2:]
        distance = clip.numbers[1] - clip.numbers[0]
        period = min(max(1000 * distance / self.video.fps, 60), 500)
        about = {"labels": clip.numbers[1:], "ratio": width / height, "period": period}
        return {"parts": clip.parts | parts, "clip": about}

    def _facts(self, clip: Clip, facts: dict[str, float]) -> dict[str, str]:
        named = {"a": "slope a", "b": "shift b", "value": "parameter", "f0": "f(0), still pixels"}
        told = {about: f"{facts[name]:.4g}" for name, about in named.items() if name in facts}
        told["variation V"] = f"{facts['V']:.4g}"
        told["pixels with f > 0.5"] = f"{100 * facts['open']:.1f} %"
        first, last = clip.numbers[0], clip.numbers[-1]
        held = ", the last one held" if clip.numbers[-1] == clip.numbers[-2] else ""
        told["frames"] = f"{first} to {last} of {self.video.total}{held}"
        seconds = (last - first) / self.video.fps
        told["duration"] = f"{seconds:.2f} s at {self.video.fps:.4g} frames/s"
        return told

    def save_panel(self, numbers: Numbers, window: Window) -> dict[str, Any]:
        """Return the panel as a file for the browser to save."""
        picture = self.video.panel(self.video.clip(window), make_norm(numbers, self.fixed))
        name = f"{Path(self.video.name).stem}_prompt.png"
        return _file(name, address(picture, "image/png"))

    def save_recipe(self, numbers: Numbers, window: Window, learn: bool) -> dict[str, Any]:
        """Return the config as a file for the browser to save."""
        seen = self.video.clip(window).numbers
        about = f"from tools/explorer.py: {self.video.name}, frames {seen[0]} to {seen[-1]}"
        text = recipe(self.start.base, numbers, self.fixed, learn=learn, about=about)
        name = f"{self.start.base.stem}_prompt.yaml"
        return _file(name, address(text.encode(), "application/yaml"))


def _file(name: str, content: str) -> dict[str, Any]:
    """Return a file for the browser to save; no two are equal, or it would not see the second."""
    return {"save": {"name": name, "address": content, "asked": time.time_ns()}}


def _value_slider(numbers: Numbers) -> dict[str, Any]:
    """Return what the slider of a power normalisation's one number is like."""
    name, default = number_of(numbers.norm)
    if not name:
        return {"visible": False, "minimum": 0, "maximum": 1, "value": 0}
    low, high = span_of(numbers.norm)
    value = round(numbers.value or default, 4)
    limits = {"minimum": min(low, value), "maximum": max(high, value), "step": 0.01}
    return {"visible": True, "label": name, "value": value, **limits}
