"""What all figures share: colours that a colour-blind reader tells apart, and how files are made.

Figures are made without pyplot, so drawing neither opens a window nor leaves anything behind.
"""

from pathlib import Path

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure

from vmp.utils.files import write_atomically

# Okabe and Ito's colours, the paper's own power normalisation being orange there as here.
ORANGE, BLUE, GREEN, PINK, SKY, RED, BLACK = (
    "#E69F00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
)
PALETTE = (BLUE, RED, GREEN, PINK, SKY, ORANGE, BLACK)
DASHES = ("-", "--", "-.", ":")
# Ends of what is negative and positive, the darkest first; white is between them.
NEGATIVE, POSITIVE = ("#08306b", "#2171b5", "#9ecae1"), ("#fdbe85", "#e6740c", "#7f2704")
PICTURE_TYPES = (".png", ".pdf", ".svg")
DPI = 120


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that many inches, whose parts make room for each other."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def difference_map() -> Colormap:
    """Return the colours of differences: blue below 0, white at 0, orange above."""
    colours = [*NEGATIVE, "#ffffff", *POSITIVE]
    return LinearSegmentedColormap.from_list("blue_orange", colours, N=257)  # odd: 0 is white


def save_figure(figure: Figure, path: str | Path, *, dpi: float = DPI) -> None:
    """Write a figure whole or not at all; the ending says as what, one of PICTURE_TYPES.

    Args:
        figure: the figure.
        path: of the file; its folder is made if needed.
        dpi: dots an inch, which lines and letters of a PDF or SVG do without.

    Raises:
        OSError: it can't be written.
    """
    kind = Path(path).suffix[1:].lower()
    # letters that stay text, as publishers ask for, and no date, so that the same bytes come out
    stamp = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "vmp"}):
        write_atomically(
            path, lambda file: figure.savefig(file, format=kind, dpi=dpi, metadata=stamp)
        )
