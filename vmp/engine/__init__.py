"""The loops: launch, step, epoch, evaluation, checkpoints."""

from vmp.engine.launch import launch
from vmp.engine.run import run
from vmp.engine.testing import test
from vmp.engine.training import train

__all__ = ["launch", "run", "test", "train"]
