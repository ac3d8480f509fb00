"""What torch.hub offers of this repository: the motion prompt, and every backbone by its recipe.

prompt = torch.hub.load("path/to/checkout", "motion_prompt", source="local")
model = torch.hub.load("path/to/checkout", "x3d_m", source="local", num_classes=8, prompt=True)
"""

# torch.hub lists every callable here whose name begins with no underscore.
import logging as _logging
from collections.abc import Callable as _Callable
from collections.abc import Mapping as _Mapping
from itertools import takewhile as _takewhile
from pathlib import Path as _Path
from typing import Any as _Any

dependencies = ["torch"]  # of the motion prompt; a backbone says itself what it lacks

_ROOT = _Path(__file__).resolve().parent
_ABOUT = """{about}

    Args:
        num_classes: classes of the head.
        prompt: put a motion prompt before it; the clip then has one frame more.
        checkpoint: weights to start from: a file, or the http(s) address of one; of this program or
            of any that MODEL_ZOO.md names. None draws them at random. A head for other classes is
            dropped, and a warning says what starts from random values.
        overrides: other keys of the configuration, as {{"DATA.TRAIN_CROP_SIZE": 112}}.

    Returns:
        A module on the CPU, in training mode. It takes clips (B, 3, model.clip_frames, H, W), RGB,
        uint8 or normalised floats, as large as the recipe's training crop or larger, and returns
        logits (B, num_classes) and V, a scalar, which is 0 without a prompt.

    Raises:
        ValueError: a value or a file that does not go with the model.
        ImportError: a package that the model needs is not installed.
    """


def motion_prompt(**options: _Any) -> _Any:
    """Motion prompt: clips (B, 3, T+1, H, W) in, prompts (B, 3, T, H, W) and V, a scalar, out.

    Clips are RGB, uint8 or floats normalised by mean and std. It needs torch alone.

    Args:
        options: those of vmp.prompts.MotionPrompt: power_norm, luma, reduction, kernel, and mean
            and std, three numbers each, of the model behind it.
    """
    from vmp.prompts import MotionPrompt

    return MotionPrompt(**options)


def _backbone(recipe: str) -> _Callable[..., _Any]:
    """Return the entry for configs/base/<recipe>.yaml, whose first comment says what it is."""
    path = _ROOT / "configs" / "base" / f"{recipe}.yaml"

    def entry(
        num_classes: int = 400,
        prompt: bool = False,
        checkpoint: str | _Path | None = None,
        overrides: _Mapping[str, _Any] = {},
    ) -> _Any:
        keys = {"MODEL.NUM_CLASSES": num_classes, "PROMPT.ENABLE": prompt, **overrides}
        try:
            return _build(path, keys, checkpoint)
        except ModuleNotFoundError as error:
            package = str(error.name).partition(".")[0]
            raise ImportError(
                f"{entry.__name__} needs {package}, which is not installed: pip install {_ROOT}"
            ) from None

    lines = path.read_text(encoding="utf-8").splitlines()
    comment = _takewhile(lambda line: line.startswith("#"), lines)
    entry.__doc__ = _ABOUT.format(about="\n    ".join(line.strip("# ") for line in comment))
    entry.__name__ = entry.__qualname__ = recipe.lower()
    return entry


def _build(path: _Path, keys: _Mapping[str, _Any], checkpoint: str | _Path | None) -> _Any:
    from vmp.config import load_cfg
    from vmp.models import build_model, load_pretrained

    model = build_model(load_cfg(path, [word for pair in keys.items() for word in pair]))
    if checkpoint is not None:
        report = load_pretrained(model, checkpoint)
        random = (*report.missing, *report.dropped)
        if random:
            log = _logging.getLogger(__name__)
            log.warning("%s: from random values start %s", report.path, ", ".join(random))
    return model


c2d_8x8_r50 = _backbone("C2D_8x8_R50")
c2d_nopool_8x8_r50 = _backbone("C2D_NOPOOL_8x8_R50")
i3d_8x8_r50 = _backbone("I3D_8x8_R50")
slowfast_4x16_r50 = _backbone("SLOWFAST_4x16_R50")
slowfast_8x8_r50 = _backbone("SLOWFAST_8x8_R50")
slowfast_8x8_r101 = _backbone("SLOWFAST_8x8_R101")
slowfast_16x8_r101_50_50 = _backbone("SLOWFAST_16x8_R101_50_50")
x3d_xs = _backbone("X3D_XS")
x3d_s = _backbone("X3D_S")
x3d_m = _backbone("X3D_M")
x3d_l = _backbone("X3D_L")
timesformer_divst_8x32_224 = _backbone("TimeSformer_divST_8x32_224")
timesformer_divst_16x16_448 = _backbone("TimeSformer_divST_16x16_448")
timesformer_divst_96x4_224 = _backbone("TimeSformer_divST_96x4_224")
