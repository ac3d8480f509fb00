import numpy as np
import pytest
import torch

from vmp.visualization.confusion import draw_confusion
from vmp.visualization.watch import confusion_pictures

MATRIX = torch.tensor([[3, 1, 0], [0, 0, 0], [0, 2, 2]])


def test_rows_are_percents_of_their_class_and_written_in_the_cells():
    figure = draw_confusion(MATRIX, ["left", "right", "up"], "val")
    axes = figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), np.nan)
    assert shown[0].tolist() == [75, 25, 0]
    assert np.isnan(shown[1]).all()  # a class without a sample
    assert shown[2].tolist() == [0, 50, 50]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75", (1, 0): "25", (1, 2): "50", (2, 2): "50"}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0 left", "1 right", "2 up"]
    assert "5 of 8 right, 62.5 %" in axes.get_title()


@pytest.mark.parametrize(("classes", "named"), [(6, 6), (51, 51), (99, 99), (288, 96)])
def test_names_stand_at_their_rows_and_none_lies_on_another_or_outside(classes, named):
    names = [f"a long name of a class of gymnastics, with a turn {n}" for n in range(classes)]
    figure = draw_confusion(torch.eye(classes, dtype=torch.int64), names)
    axes = figure.axes[0]
    figure.canvas.draw()
    labels = axes.get_yticklabels()
    assert len(labels) == named
    assert all(
        label.get_text().startswith(f"{place:.0f} a long")
        for label, place in zip(labels, axes.get_yticks(), strict=True)
    )
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(one.y1 <= two.y0 + 1 for one, two in zip(boxes, boxes[1:], strict=False))
    assert min(box.x0 for box in boxes) > 0
    assert bool(axes.texts) == (classes == 6)


def test_the_picture_is_of_a_size_that_a_page_shows():
    names = [str(number) for number in range(288)]
    pictures = confusion_pictures(torch.ones(288, 288).long(), names, "test/confusion")
    picture = pictures["test/confusion"]
    assert picture.dtype == np.uint8
    assert max(picture.shape) < 2000
