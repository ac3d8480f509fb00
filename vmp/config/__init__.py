"""The configuration: every key with its default, and the way from a file to a checked config."""

from vmp.config.defaults import get_cfg
from vmp.config.load import load_cfg

__all__ = ["get_cfg", "load_cfg"]
