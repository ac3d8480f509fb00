import av
import numpy as np
import pytest

from vmp.visualization import save_figure, write_movie
from vmp.visualization.style import new_figure


def blank():
    figure = new_figure(2, 1)
    figure.subplots().plot([0, 1])
    return figure


@pytest.mark.parametrize(
    ("ending", "start"),
    [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml"), ("PNG", b"\x89")],
)
def test_the_ending_says_what_is_written_and_the_folder_is_made(tmp_path, ending, start):
    path = tmp_path / "new" / f"figure.{ending}"
    save_figure(blank(), path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path, ending):
    paths = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for path in paths:
        save_figure(blank(), path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_figure_that_fails_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"before")
    figure = blank()
    figure.axes[0].set_title("$\\nonsense$")  # found when it is drawn
    with pytest.raises(ValueError, match="nonsense"):
        save_figure(figure, path)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_movie_plays_its_pictures_in_order_at_its_rate(tmp_path):
    path = tmp_path / "movie.mp4"
    pictures = [np.full((64, 96, 3), 40 * step, dtype=np.uint8) for step in range(6)]
    write_movie(iter(pictures), path, fps=12.5)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == 12.5
        assert stream.codec_context.pix_fmt == "yuv420p"
        shown = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(stream)]
    assert shown == pytest.approx([40 * step for step in range(6)], abs=6)
