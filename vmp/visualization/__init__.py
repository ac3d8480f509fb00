"""Figures; read by tools only."""

from vmp.visualization.panel import motion_panel, prompt_panel

__all__ = ["motion_panel", "prompt_panel"]
