import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize

from vmp.prompts import POWER_NORMS, MotionPrompt
from vmp.visualization import motion_panel, prompt_panel


def random_parts(rows=3, height=8, width=10):
    return {
        "frames": torch.randint(0, 256, (rows, height, width, 3), dtype=torch.uint8),
        "differences": torch.rand(rows, height, width) - 0.3,
        "attention": torch.rand(rows, height, width),
        "prompts": torch.rand(rows, height, width, 3) * 1.4 - 0.2,
    }


def flat_parts(frame=(200, 30, 90), difference=0.0, attention=0.5, prompt=(0.2, 0.4, 1.5)):
    """One row of flat pictures, but for the differences, which also hold 1 and so fix the scale."""
    parts = {
        "frames": torch.tensor(frame, dtype=torch.uint8).expand(1, 20, 30, 3),
        "differences": torch.full((1, 20, 30), difference),
        "attention": torch.full((1, 20, 30), attention),
        "prompts": torch.tensor(prompt).expand(1, 20, 30, 3),
    }
    parts["differences"][0, 0, 0] = 1.0
    return parts


def drawn_colours(figure, row=0):
    """Return the colour in the middle of each picture of a row, 0..255, as it was drawn."""
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    colours = []
    for axes in figure.axes[4 * row : 4 * row + 4]:
        x, y = axes.get_window_extent().get_points().mean(axis=0)
        colours.append(pixels[pixels.shape[0] - 1 - int(y), int(x), :3].astype(int))
    return colours


def coolwarm(attention):
    colour = matplotlib.colormaps["coolwarm"](Normalize(-1.8, 1.8)(attention))
    return np.array(colour[:3]) * 255


def test_the_pixels_drawn_are_the_pictures():
    frame, _, attention, prompt = drawn_colours(motion_panel(**flat_parts()))
    assert frame.tolist() == [200, 30, 90]
    assert np.abs(attention - coolwarm(0.5)).max() <= 1
    assert np.abs(prompt - np.array([51, 102, 255])).max() <= 1  # 1.5 is clipped


@pytest.mark.parametrize("attention", [0.0, 1.0])
def test_attention_is_in_the_authors_colours(attention):
    drawn = drawn_colours(motion_panel(**flat_parts(attention=attention)))[2]
    assert np.abs(drawn - coolwarm(attention)).max() <= 1


def test_differences_are_blue_below_zero_red_above_and_white_at_zero():
    colours = {
        value: drawn_colours(motion_panel(**flat_parts(difference=value)))[1]
        for value in (-0.5, 0.0, 0.5)
    }
    red, green, blue = colours[-0.5]
    assert blue > green > red + 50
    red, green, blue = colours[0.5]
    assert red > blue + 50
    assert colours[0.0].min() > 240
    assert np.ptp(colours[0.0]) <= 2


@pytest.mark.parametrize("sign", [1, -1])
def test_the_scale_of_the_differences_is_symmetric_whatever_their_sign(sign):
    parts = random_parts()
    parts["differences"] = sign * torch.linspace(0, 0.4, 240).view(3, 8, 10)
    limits = motion_panel(**parts).axes[1].images[0].get_clim()
    assert limits == pytest.approx((-0.4, 0.4))


def test_a_still_clip_is_white_and_not_an_error():
    parts = random_parts()
    parts["differences"] = torch.zeros(3, 8, 10)
    figure = motion_panel(**parts)
    assert figure.axes[1].images[0].get_clim() == (-1 / 255, 1 / 255)
    assert drawn_colours(figure)[1].min() > 240


@pytest.mark.parametrize("width", [3, 10])
def test_every_cell_holds_its_own_picture(width):
    parts = random_parts(width=width)
    axes = np.array(motion_panel(**parts).axes[:12]).reshape(3, 4)
    expected = parts | {"prompts": parts["prompts"].clamp(0, 1)}
    for column, pictures in enumerate(expected.values()):
        for row in range(3):
            shown = axes[row, column].images[0].get_array()
            np.testing.assert_array_equal(shown, pictures[row].numpy())


def test_titles_labels_and_caption_are_written():
    figure = motion_panel(**random_parts(), title="clip 7", caption="a = 3", labels=["x", "y", "z"])
    titles = [axes.get_title() for axes in figure.axes[:4]]
    assert titles == ["frames", "differences", "attention", "prompts"]
    assert [figure.axes[4 * row].get_ylabel() for row in range(3)] == ["x", "y", "z"]
    assert (figure.get_suptitle(), figure.get_supxlabel()) == ("clip 7", "a = 3")


def test_drawing_leaves_pyplot_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), matplotlib.get_backend()
    motion_panel(**random_parts()).canvas.draw()
    assert (plt.get_fignums(), matplotlib.get_backend()) == before


@pytest.mark.parametrize("name", ["frames", "differences", "attention", "prompts"])
def test_parts_that_do_not_fit_are_refused(name):
    parts = random_parts()
    parts[name] = parts[name][:2]
    with pytest.raises(ValueError, match="T, H, W, 3"):
        motion_panel(**parts)


def moving_square(frames=6):
    """A bright square that moves right by two pixels a frame over a dark ground."""
    clip = torch.full((3, frames, 16, 24), 40, dtype=torch.uint8)
    for frame in range(frames):
        clip[:, frame, 5:11, 2 * frame : 2 * frame + 6] = 220
    return clip


def fixed_prompt(**arguments):
    norm = POWER_NORMS.get("sigmoid")(m=0.257, n=0.053, learnable=False)
    return MotionPrompt(norm, **arguments)


def test_a_prompt_panel_shows_what_the_layer_computes():
    clip, mean, std = moving_square(), (0.3, 0.4, 0.5), (0.2, 0.3, 0.4)
    axes = np.array(prompt_panel(fixed_prompt(mean=mean, std=std), clip).axes[:20]).reshape(5, 4)
    gray = torch.tensor([0.299, 0.587, 0.114]) @ (clip.float() / 255).flatten(1)
    differences = gray.view(6, 16, 24).diff(dim=0)
    attention = 1 / (1 + torch.exp(-23.46 * (differences - 0.0318)))
    # f (x - mean) / std, back to pixels: mean + f (x - mean)
    middle = torch.tensor(mean).view(3, 1, 1, 1)
    prompts = middle + attention * (clip[:, 1:].float() / 255 - middle)
    expected = [clip[:, 1:].movedim(0, -1), differences, attention, prompts.movedim(0, -1)]
    for column, (pictures, tolerance) in enumerate(
        zip(expected, (0, 1e-6, 1e-3, 1e-3), strict=True)
    ):
        for row in range(5):
            shown = np.asarray(axes[row, column].images[0].get_array(), dtype=np.float64)
            np.testing.assert_allclose(
                shown, pictures[row].double().numpy(), rtol=0, atol=tolerance
            )


def test_the_caption_tells_slope_shift_and_the_attention_of_a_still_pixel():
    caption = prompt_panel(fixed_prompt(), moving_square()).get_supxlabel()
    for text in ("a = 23.5", "b = 0.0318", "f(0) = 0.322", "V = "):
        assert text in caption


@pytest.mark.parametrize("name", [name for name, _ in POWER_NORMS])
def test_every_power_normalisation_can_be_drawn(name):
    figure = prompt_panel(MotionPrompt(POWER_NORMS.get(name)()), moving_square())
    assert figure.get_supxlabel().startswith(f"{name}: ")
    assert "f(0) = " in figure.get_supxlabel()


def test_of_a_long_clip_evenly_spaced_steps_are_drawn():
    figure = prompt_panel(fixed_prompt(), moving_square(frames=9), max_rows=3)
    assert [figure.axes[4 * row].get_ylabel() for row in range(3)] == ["1", "5", "8"]


def test_a_clip_of_another_kind_is_refused():
    for clip in (moving_square().float(), moving_square().unsqueeze(0)):
        with pytest.raises(ValueError, match="uint8"):
            prompt_panel(fixed_prompt(), clip)
    with pytest.raises(ValueError, match="at least 3"):
        prompt_panel(fixed_prompt(), moving_square(frames=2))
