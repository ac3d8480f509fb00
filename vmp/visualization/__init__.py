"""Figures; read by tools only."""

from vmp.visualization.curves import draw_curves
from vmp.visualization.history import draw_history, read_history
from vmp.visualization.movie import write_movie
from vmp.visualization.panel import draw_panel, motion_rows, movie_frames, prompt_panel
from vmp.visualization.style import save_figure
from vmp.visualization.surfaces import draw_surfaces, moved_blob

__all__ = [
    "draw_curves",
    "draw_history",
    "draw_panel",
    "draw_surfaces",
    "motion_rows",
    "moved_blob",
    "movie_frames",
    "prompt_panel",
    "read_history",
    "save_figure",
    "write_movie",
]
