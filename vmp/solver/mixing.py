"""Mixup (arXiv:1710.09412) and cutmix (arXiv:1905.04899) of whole clips.

Two clips are mixed *before* they are split into pathways and differenced, so every pathway and the
motion prompt see the same mixture. (PySlowFast mixes only the first pathway.)
"""

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F


class Mixing:
    """Mix each clip of a batch with another one of it, and the labels in the same shares.

    One draw a batch: method, share and, for cutmix, box. The partners are a random permutation, so
    a clip may meet itself and stay as it is.

    Args:
        num_classes: C of the soft targets.
        mixup_alpha: the share is drawn from Beta(alpha, alpha); 0 switches mixup off.
        cutmix_alpha: likewise for cutmix. Both above 0: one of the two is drawn, evenly.

    Raises:
        ValueError: a negative alpha, or both are 0.
    """

    def __init__(
        self, *, num_classes: int, mixup_alpha: float = 0.0, cutmix_alpha: float = 0.0
    ) -> None:
        alphas = {"mixup": mixup_alpha, "cutmix": cutmix_alpha}
        if min(alphas.values()) < 0 or max(alphas.values()) == 0:
            raise ValueError(
                f"TRAIN.MIXUP_ALPHA is {mixup_alpha} and TRAIN.CUTMIX_ALPHA {cutmix_alpha}; "
                "neither may be negative, and at least one must be above 0 to mix"
            )
        self.num_classes = num_classes
        self.alphas = {method: alpha for method, alpha in alphas.items() if alpha > 0}

    def __call__(self, clip: Tensor, label: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the mixed clips (B, 3, T, H, W), new memory, and soft targets (B, C) float32.

        Args:
            clip: (B, 3, T, H, W) normalised floats.
            label: (B,) int64 in [0, C).
            rng: a generator on the CPU; the only source of chance, so no device waits.

        Raises:
            ValueError: the clip is not of floats.
        """
        if not clip.is_floating_point():
            raise ValueError(f"a clip of {clip.dtype} cannot be mixed; normalise it to float first")
        # torch's Beta takes no generator; numpy's, seeded from `rng`, does as well
        draw = np.random.default_rng(int(torch.randint(2**62, (), generator=rng)))
        partner = torch.randperm(len(clip), generator=rng, pin_memory=clip.is_cuda)
        partner = partner.to(clip.device, non_blocking=True)  # or the host would wait for the GPU
        method = draw.choice(list(self.alphas))
        share = float(draw.beta(self.alphas[method], self.alphas[method]))
        if method == "mixup":
            mixed = clip.lerp(clip[partner], share)
        else:
            height, width = clip.shape[-2:]
            top, bottom, left, right = random_box(height, width, share, draw)
            mixed = clip.clone()
            mixed[..., top:bottom, left:right] = clip[partner, :, :, top:bottom, left:right]
            share = (bottom - top) * (right - left) / (height * width)
        own = F.one_hot(label, self.num_classes).float()
        return mixed, own.lerp(own[partner], share)


def random_box(
    height: int, width: int, share: float, draw: np.random.Generator
) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a box of about `share` of the picture, half-open.

    Its centre is uniform over the picture, and what hangs over the border is cut off; so the
    box's own area, not `share`, is what the labels must be mixed by.
    """
    side = share**0.5
    edges = []
    for length in (height, width):
        half = side * length / 2
        centre = draw.uniform(0, length)
        edges += [max(round(centre - half), 0), min(round(centre + half), length)]
    top, bottom, left, right = edges
    return top, bottom, left, right


def build_mixing(cfg: CfgNode) -> Mixing | None:
    """Return the mixing TRAIN asks for, or None if both its alphas are 0."""
    if cfg.TRAIN.MIXUP_ALPHA == 0 and cfg.TRAIN.CUTMIX_ALPHA == 0:
        return None
    return Mixing(
        num_classes=cfg.MODEL.NUM_CLASSES,
        mixup_alpha=cfg.TRAIN.MIXUP_ALPHA,
        cutmix_alpha=cfg.TRAIN.CUTMIX_ALPHA,
    )
