"""The paper: frame differences, power normalisation, attention, prompts and their variation."""

from vmp.prompts.layer import MotionPrompt
from vmp.prompts.power_norm import POWER_NORMS

__all__ = ["POWER_NORMS", "MotionPrompt"]
