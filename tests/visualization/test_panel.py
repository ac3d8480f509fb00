import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize
from matplotlib.text import Annotation

from vmp.prompts import POWER_NORMS, MotionPrompt
from vmp.visualization import draw_panel, motion_rows, movie_frames, prompt_panel
from vmp.visualization.panel import Row, picture_of, stretch, wrapped
from vmp.visualization.style import difference_map

STEPS = 5


def moving_square(frames=STEPS + 1):
    """A bright square that moves right by two pixels a frame over a dark ground."""
    clip = torch.full((3, frames, 16, 24), 40, dtype=torch.uint8)
    for frame in range(frames):
        clip[:, frame, 5:11, 2 * frame : 2 * frame + 6] = 220
    return clip


def fixed_prompt(m=0.257, n=0.053, **arguments):
    return MotionPrompt(POWER_NORMS.get("sigmoid")(m=m, n=n, learnable=False), **arguments)


def cells(figure, rows, columns=STEPS):
    """Return the axes of the pictures, (rows, columns); the colour bars come behind them."""
    return np.array(figure.axes[: rows * columns]).reshape(rows, columns)


def drawn_colour(figure, axes):
    """Return the colour in the middle of a picture, 0..255, as it was drawn."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    x, y = axes.get_window_extent().get_points().mean(axis=0)
    return pixels[pixels.shape[0] - 1 - int(y), int(x), :3].astype(int)


def texts(figure):
    """Return what is written; the blanks at which no line breaks are blanks here."""
    written = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    return [text.replace("\N{NO-BREAK SPACE}", " ") for text in written if text]


def test_the_rows_are_what_the_layer_computes():
    clip, mean, std = moving_square(), (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
    rows = motion_rows([("", fixed_prompt(mean=mean, std=std))], clip)
    gray = torch.tensor([0.299, 0.587, 0.114]) @ (clip.float() / 255).flatten(1)
    differences = gray.view(STEPS + 1, 16, 24).diff(dim=0)
    attention = 1 / (1 + torch.exp(-23.46 * (differences - 0.0318)))
    # f (x - mean) / std, back to pixels: mean + f (x - mean)
    middle = torch.tensor(mean).view(3, 1, 1, 1)
    prompts = middle + attention * (clip[:, 1:].float() / 255 - middle)
    expected = [clip[:, 1:].movedim(0, -1), differences, attention, prompts.movedim(0, -1)]
    assert [row.name for row in rows] == ["frames", "differences", "attention", "prompts"]
    for row, pictures, tolerance in zip(rows, expected, (0, 1e-6, 1e-3, 1e-3), strict=True):
        torch.testing.assert_close(row.pictures.double(), pictures.double(), rtol=0, atol=tolerance)


def test_every_cell_holds_its_own_picture():
    rows = motion_rows([("", fixed_prompt())], moving_square())
    axes = cells(draw_panel(rows), len(rows))
    for line, row in zip(axes, rows, strict=True):
        for cell, picture in zip(line, row.pictures, strict=True):
            np.testing.assert_array_equal(cell.images[0].get_array(), picture.numpy())


def test_a_row_has_one_scale_and_attention_the_same_for_all_prompts():
    prompts = [("one", fixed_prompt()), ("two", fixed_prompt(m=1.06, n=-2.67))]
    axes = cells(draw_panel(motion_rows(prompts, moving_square())), 6)
    limits = [{cell.images[0].get_clim() for cell in line} for line in axes]
    assert all(len(each) == 1 for each in limits)
    assert limits[2] == limits[4] == {(-1.8, 1.8)}
    (low, high), *_ = limits[1]
    assert low == -high


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_attention_is_in_the_authors_colours(value):
    rows = motion_rows([("", fixed_prompt())], moving_square())
    rows = [row._replace(pictures=torch.full((STEPS, 16, 24), value)) for row in rows[2:3]]
    figure = draw_panel(rows)
    colour = matplotlib.colormaps["coolwarm"](Normalize(-1.8, 1.8)(value))
    assert np.abs(drawn_colour(figure, figure.axes[0]) - np.array(colour[:3]) * 255).max() <= 1


def test_differences_are_blue_below_zero_orange_above_and_white_at_zero():
    colours = np.array(difference_map()([0.25, 0.5, 0.75]))[:, :3]
    (red, green, blue), white, (more_red, more_green, more_blue) = colours
    assert blue > green > red
    assert (white == 1).all()
    assert more_red > more_green > more_blue


def test_the_two_signs_differ_for_the_colour_blind():
    """Blue against yellow is what the common forms of colour blindness leave."""
    scale = difference_map()
    for value in (0.1, 0.2, 0.4):
        below, above = (np.array(scale(0.5 + sign * value))[:3] for sign in (-1, 1))
        more_blue = [colour[2] - (colour[0] + colour[1]) / 2 for colour in (below, above)]
        assert more_blue[0] > 0.1
        assert more_blue[1] < -0.1


def test_a_still_clip_is_white_and_not_an_error():
    clip = torch.full((3, STEPS + 1, 16, 24), 90, dtype=torch.uint8)
    figure = prompt_panel(fixed_prompt(), clip)
    still = cells(figure, 4)[1, 0]
    assert still.images[0].get_clim() == (-1 / 255, 1 / 255)
    assert drawn_colour(figure, still).min() == 255


def test_normalised_differences_reach_from_0_to_1_in_every_step():
    rows = motion_rows([("", fixed_prompt())], moving_square(), normalised=True)
    assert rows[1].name == "normalised\ndifferences"
    differences = rows[2].pictures.double()
    for found, step in zip(rows[1].pictures, differences, strict=True):
        expected = (step - step.min()) / (step.max() - step.min())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_a_flat_difference_is_stretched_to_the_middle():
    assert (stretch(torch.zeros(2, 3, 4)) == 0.5).all()


def test_titles_labels_and_headings_are_written():
    rows = motion_rows([("run 7", fixed_prompt())], moving_square())
    labels = [f"frame {2 * step}" for step in range(STEPS)]
    figure = draw_panel(rows, title="clip", labels=labels)
    found = texts(figure)
    assert figure.get_suptitle() == "clip"
    assert {*labels, "frames", "differences", "attention", "prompts"} <= set(found)
    (heading,) = [text for text in found if text.startswith("run 7")]
    for text in ("sigmoid", "a = 23.46", "b = 0.03177", "f(0) = 0.3219", "V = "):
        assert text in heading


def test_nothing_written_is_cut_off_or_widens_a_picture():
    name = "a run with a name that with its numbers is longer than five pictures are wide"
    figure = draw_panel(motion_rows([(name, fixed_prompt())], moving_square()))
    figure.canvas.draw()
    lines = cells(figure, 4)
    for left, right in zip(lines[:, :-1].flat, lines[:, 1:].flat, strict=True):
        gap = right.get_window_extent().x0 - left.get_window_extent().x1
        assert 0 < gap < 10  # pixels
    (heading,) = [text for text in figure.findobj(Annotation) if "a run" in text.get_text()]
    assert heading.get_window_extent().x1 <= figure.bbox.width
    assert heading.get_window_extent().y1 <= lines[1, 0].get_window_extent().y0
    for axes in figure.axes:
        box = axes.get_tightbbox(for_layout_only=True)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.width
        assert box.y1 <= figure.bbox.height


def test_of_a_long_clip_evenly_spaced_steps_are_drawn():
    figure = prompt_panel(fixed_prompt(), moving_square(frames=9), max_steps=3)
    assert [axes.get_title() for axes in figure.axes[:3]] == ["1", "5", "8"]


@pytest.mark.parametrize("name", [name for name, _ in POWER_NORMS])
def test_every_power_normalisation_can_be_drawn(name):
    figure = prompt_panel(MotionPrompt(POWER_NORMS.get(name)()), moving_square())
    (heading,) = [text for text in texts(figure) if text.startswith(name)]
    assert "f(0) = " in heading


def test_drawing_leaves_pyplot_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), matplotlib.get_backend()
    prompt_panel(fixed_prompt(), moving_square()).canvas.draw()
    assert (plt.get_fignums(), matplotlib.get_backend()) == before


@pytest.mark.parametrize("shape", [(4, 16, 24), (5, 16, 23), (5, 16, 24, 4), (5, 16)])
def test_rows_that_do_not_fit_are_refused(shape):
    fits = Row("frames", torch.zeros(5, 16, 24))
    with pytest.raises(ValueError, match="T, H, W, 3"):
        draw_panel([fits, Row("attention", torch.zeros(shape))])


def test_a_clip_of_another_kind_is_refused():
    for clip in (moving_square().float(), moving_square().unsqueeze(0)):
        with pytest.raises(ValueError, match="uint8"):
            prompt_panel(fixed_prompt(), clip)
    with pytest.raises(ValueError, match="at least 3"):
        prompt_panel(fixed_prompt(), moving_square(frames=2))
    with pytest.raises(ValueError, match="one at least"):
        motion_rows([], moving_square())


def test_a_movie_has_a_picture_a_step_of_one_even_size_and_they_differ():
    rows = motion_rows([("", fixed_prompt())], moving_square())
    pictures = list(movie_frames(rows, title="clip", labels=["the same"] * STEPS))
    assert len(pictures) == STEPS
    ((height, width, channels),) = {picture.shape for picture in pictures}
    assert (height % 2, width % 2, channels) == (0, 0, 3)
    assert width > 2 * height  # side by side
    assert all((one != two).any() for one, two in zip(pictures, pictures[1:], strict=False))


def test_attention_and_prompts_of_a_movie_stay_in_one_line():
    rows = motion_rows([("", fixed_prompt())] * 2, moving_square(), normalised=True)
    found = [row and row.name.split()[0] for row in wrapped(rows)]
    pair = ["attention", "prompts"]
    assert found == ["frames", "normalised", "differences", None, *pair, *pair]
    flat, tall = (next(iter(movie_frames(each))).shape for each in (rows[:3], rows))
    assert tall[0] > 1.6 * flat[0]


def test_a_figure_becomes_a_picture_of_its_size():
    figure = prompt_panel(fixed_prompt(), moving_square())
    width, height = figure.get_size_inches()
    picture = picture_of(figure, dpi=50)
    assert picture.shape == (int(height * 50), int(width * 50), 3)
    assert picture.dtype == np.uint8
