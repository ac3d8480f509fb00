"""The paper: frame differences, power normalisation, attention, prompts and their variation.

Needs torch and nothing else.
"""

from vmp.prompts.attach import PromptedModel, PromptedOutput, attach
from vmp.prompts.layer import MotionPrompt
from vmp.prompts.power_norm import POWER_NORMS

__all__ = ["POWER_NORMS", "MotionPrompt", "PromptedModel", "PromptedOutput", "attach"]
