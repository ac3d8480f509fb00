"""What the page of `tools/explorer.py` shows: numbers in, pictures out. Nothing here is of the web.

A picture is a strip, the T steps of one kind from left to right, as a `data:` address.
"""

import base64
import inspect
import io
import math
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import yaml
from explorer import MOST_FRAMES
from matplotlib import colormaps
from PIL import Image
from reproduce_cells import DATA_SETS
from torch import Tensor
from visualize import MPII_M, MPII_N
from visualize_clip import read_clip

from vmp.data import VideoReader
from vmp.prompts import POWER_NORMS, MotionPrompt
from vmp.prompts import functional as F
from vmp.prompts.power_norm import PowerNorm, sigmoid
from vmp.visualization import draw_panel, motion_rows
from vmp.visualization.panel import ATTENTION_LIMIT, ATTENTION_MAP, SMALLEST_LIMIT
from vmp.visualization.style import DPI, difference_map

JPEG = {"quality": 90, "subsampling": 0}  # thin coloured edges keep their colour
BINS = 101  # of the histogram, over [-1, 1]; an odd number: one is around 0
# m and n of the authors' site, for FineGym by the lambda of the training, and for UCF-Crime.
LAMBDAS = {
    "0": (1.69, -0.26),
    "0.1": (1.80, -0.26),
    "0.5": (0.86, -2.13),
    "1": (1.02, -2.32),
    "1.5": (1.10, -2.45),
    "2": (1.01, -2.60),
    "2.5": (1.06, -2.67),
    "5": (1.30, -2.94),
    "10": (1.28, -3.27),
}
UCF_CRIME = (0.8916, -0.2543)
# What a slider of the one number of a power normalisation spans; others: a tenth to ten times.
SPANS = {"gamma": (0.02, 0.98), "maxexp": (1.01, 20.0), "sigme": (1.01, 40.0), "asinhe": (1, 500)}


class Numbers(NamedTuple):
    """A power normalisation by its name, with the numbers it has.

    Attributes:
        norm: its name in POWER_NORMS.
        m: of the paper's sigmoid.
        n: likewise.
        value: the one number of another; `identity` has none.
    """

    norm: str
    m: float
    n: float
    value: float


class Window(NamedTuple):
    """Which frames of the video a clip has.

    Attributes:
        start: the first, from 0.
        stride: distance of the frames that a fast pathway sees.
        pathway: stride of the pathway: how many times that the prompt's frames are apart.
        steps: T, prompts made.
    """

    start: int
    stride: int
    pathway: int
    steps: int


class Clip(NamedTuple):
    """A clip, and what no power normalisation changes of it.

    Attributes:
        numbers: of its T+1 frames in the video.
        frames: (3, T+1, H, W) uint8.
        values: likewise, normalised, float32.
        differences: (T, H, W) in [-1, 1].
        histogram: (BINS,), pixels.
        parts: strips of frames and differences, and the largest difference there is.
    """

    numbers: list[int]
    frames: Tensor
    values: Tensor
    differences: Tensor
    histogram: npt.NDArray[Any]
    parts: dict[str, str]


class Made(NamedTuple):
    """What a power normalisation makes of a clip.

    Attributes:
        curve: (N, 2), D from -1 to 1 and f(D).
        facts: a, b, f(0), V and the share of pixels whose attention is above a half, by name.
        parts: strips of attention and prompts.
    """

    curve: npt.NDArray[Any]
    facts: dict[str, float]
    parts: dict[str, str]


# ---------------------------------------------------------------- power normalisations


def presets() -> dict[str, tuple[float, float]]:
    """Return the pairs of m and n that the authors' site gives as learned, by what on."""
    known = {each.title: each.learned for each in DATA_SETS.values()} | {"UCF-Crime": UCF_CRIME}
    named = {title: pair for title, pair in known.items() if pair is not None}
    return named | {f"FineGym, λ = {penalty}": pair for penalty, pair in LAMBDAS.items()}


def number_of(name: str) -> tuple[str, float]:
    """Return the name and default of the one number of a power normalisation, ("", 0) if none."""
    parameters = inspect.signature(POWER_NORMS.get(name)).parameters.values()
    given = [each for each in parameters if isinstance(each.default, float)]
    return (given[0].name, given[0].default) if len(given) == 1 else ("", 0.0)


def span_of(name: str) -> tuple[float, float]:
    """Return what a slider of that number spans."""
    default = number_of(name)[1]
    return SPANS.get(name, (default / 10, default * 10))


def constants(norm: PowerNorm | None) -> dict[str, float]:
    """Return alpha, beta, gamma and eps of Eq. 2: those of a sigmoid, else the paper's."""
    source: Any = norm if isinstance(norm, sigmoid) else sigmoid(m=1.0, n=0.0)
    return {name: float(getattr(source, name)) for name in ("alpha", "beta", "gamma", "eps")}


def make_norm(numbers: Numbers, fixed: dict[str, float]) -> PowerNorm:
    """Return the power normalisation of these numbers, with the constants of Eq. 2."""
    if numbers.norm == "sigmoid":
        return sigmoid(m=numbers.m, n=numbers.n, learnable=False, **fixed)
    name, _ = number_of(numbers.norm)
    made: PowerNorm = POWER_NORMS.get(numbers.norm)(**({name: numbers.value} if name else {}))
    return made


def numbers_of(norm: PowerNorm) -> Numbers:
    """Return the numbers of a power normalisation, m and n those of MPII where it has none."""
    found = {name: float(value) for name, value in norm.describe().items()}
    return Numbers(
        type(norm).__name__,
        found.get("m", MPII_M),
        found.get("n", MPII_N),
        found.get("value", 0.0),
    )


def slope_and_shift(m: float, n: float, fixed: dict[str, float]) -> tuple[float, float]:
    """Return a and b (Eq. 2)."""
    a, b = sigmoid(m=m, n=n, learnable=False, **fixed).coefficients(torch.float64)
    return float(a), float(b)


def m_of(a: float, fixed: dict[str, float], *, near: float, reach: float) -> float:
    """Return the m of a slope, of the sign of `near`, at most `reach` from 0."""
    tanh = (fixed["alpha"] / a - fixed["eps"]) / fixed["beta"]
    return math.copysign(math.atanh(min(max(tanh, 0.0), math.tanh(reach))), near)


def n_of(b: float, fixed: dict[str, float], *, reach: float) -> float:
    """Return the n of a shift, at most `reach` from 0."""
    limit = math.tanh(reach)
    return math.atanh(min(max(b / fixed["gamma"], -limit), limit))


# ---------------------------------------------------------------- the clip


def frames_of(window: Window, total: int) -> list[int]:
    """Return the T+1 frames wanted of a video of `total`; the first two of them are there."""
    distance = min(max(window.stride * window.pathway, 1), total - 1)
    start = min(max(window.start, 0), total - 1 - distance)
    steps = min(max(window.steps, 2), MOST_FRAMES)
    return [start + step * distance for step in range(steps + 1)]


class Video:
    """A video that several threads read clips of.

    Args:
        reader: of the file.
        layer: how differences are made, and the scale of what the attention multiplies.
        short_side: of the clips, pixels.

    Raises:
        ValueError: it has one frame only.
    """

    def __init__(self, reader: VideoReader, layer: MotionPrompt, short_side: int) -> None:
        if len(reader) < 2:
            raise ValueError(f"{reader.path}: it has {len(reader)} frame; a difference takes two")
        self.reader, self.layer, self.short_side = reader, layer, short_side
        self.name, self.total, self.fps = Path(reader.path).name, len(reader), reader.fps
        self._lock = Lock()
        self.clip = lru_cache(maxsize=8)(self._clip)

    def _clip(self, window: Window) -> Clip:
        """Return a clip; past the end of the video its last frame is held."""
        numbers = frames_of(window, self.total)
        with self._lock:
            frames = read_clip(self.reader, numbers, self.short_side)
        differences = self.layer.differences(frames.unsqueeze(0))[0]
        limit = max(float(differences.abs().max()), SMALLEST_LIMIT)
        counts = torch.histc(differences, BINS, -1.0, 1.0).numpy()
        parts = {
            "frames": strip(frames[:, 1:].permute(1, 2, 3, 0)),
            "differences": strip(coloured(differences, limit, difference_map())),
            "limit": f"{limit:.2g}",
        }
        values = F.normalize(frames, self.layer.mean, self.layer.std)
        held = [min(number, self.total - 1) for number in numbers]
        return Clip(held, frames, values, differences, counts, parts)

    @torch.no_grad()
    def make(self, clip: Clip, norm: PowerNorm) -> Made:
        """Return what a power normalisation makes of a clip (Eq. 3 to 6)."""
        attention = norm(clip.differences).unsqueeze(0)
        prompts = F.motion_prompts(attention, clip.values.unsqueeze(0))
        pixels = F.to_pixels(prompts, self.layer.mean, self.layer.std)[0].clamp_(0, 1).mul_(255)
        # a half is added so that the cast rounds
        shown = pixels.add_(0.5).to(torch.uint8).permute(1, 2, 3, 0)
        across = torch.linspace(-1, 1, 201)
        facts = {name: float(value) for name, value in norm.describe().items()}
        facts["V"] = float(F.attention_variation(attention, self.layer.reduction))
        facts["open"] = float((attention > 0.5).float().mean())
        parts = {
            "attention": strip(coloured(attention[0], ATTENTION_LIMIT, colormaps[ATTENTION_MAP])),
            "prompts": strip(shown),
        }
        return Made(torch.stack((across, norm(across)), dim=1).numpy(), facts, parts)

    def panel(self, clip: Clip, norm: PowerNorm) -> bytes:
        """Return the panel of `tools/visualize.py panels` as a PNG."""
        luma, reduction = self.layer.luma, self.layer.reduction
        mean, std = self.layer.mean, self.layer.std
        layer = MotionPrompt(norm, luma=luma, reduction=reduction, mean=mean, std=std)
        rows = motion_rows([("", layer)], clip.frames)
        labels = [f"frame {number}" for number in clip.numbers[1:]]
        file = io.BytesIO()
        draw_panel(rows, title=self.name, labels=labels).savefig(file, format="png", dpi=DPI)
        return file.getvalue()


def coloured(values: Tensor, limit: float, colours: Any) -> Tensor:
    """Return maps (T, H, W) as colours (T, H, W, 3) uint8, -limit to limit as imshow has them."""
    table = colours(np.arange(colours.N), bytes=True)[:, :3]
    place = values.add(limit).mul_(colours.N / (2 * limit)).clamp_(0, colours.N - 1)
    return torch.from_numpy(np.take(table, place.to(torch.int16).numpy(), axis=0))


def strip(pictures: Tensor) -> str:
    """Return pictures (T, H, W, 3) uint8 beside each other, as an address with a JPEG in it."""
    _, height, width, _ = pictures.shape
    joined = pictures.transpose(0, 1).reshape(height, -1, 3)
    file = io.BytesIO()
    Image.fromarray(joined.numpy()).save(file, "JPEG", **JPEG)
    return address(file.getvalue(), "image/jpeg")


def address(content: bytes, kind: str) -> str:
    """Return an address that has its content in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# ---------------------------------------------------------------- the YAML


def recipe(
    base: Path, numbers: Numbers, fixed: dict[str, float], *, learn: bool, about: str
) -> str:
    """Return a config file for tools/run_net.py: a recipe with a prompt that starts so.

    Args:
        base: the recipe, or the config of a run; its OUTPUT_DIR is not taken over.
        numbers: of the power normalisation.
        fixed: constants of Eq. 2.
        learn: LEARNABLE; a sigmoid's m of 0 has no gradient, so it is fixed then.
        about: a comment, one line.
    """
    section: dict[str, Any] = {}
    name, _ = number_of(numbers.norm)
    if numbers.norm == "sigmoid":
        section = {key.upper(): value for key, value in fixed.items()}
        section |= {"M": numbers.m, "N": numbers.n, "LEARNABLE": learn and numbers.m != 0}
    elif name:
        section = {name.upper(): numbers.value, "LEARNABLE": learn}
    prompt: dict[str, Any] = {"ENABLE": True, "POWER_NORM": numbers.norm}
    prompt |= {numbers.norm.upper(): section} if section else {}
    content = {"_BASE_": str(base.resolve()), "OUTPUT_DIR": "", "PROMPT": prompt}
    text: str = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    return f"# {' '.join(about.split())}\n{text}"
