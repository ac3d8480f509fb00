"""The loops: launch, step, epoch, evaluation, checkpoints."""

from vmp.engine.launch import launch
from vmp.engine.run import run, test, train

__all__ = ["launch", "run", "test", "train"]
