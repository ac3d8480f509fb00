"""Launching without starting anything."""

import pytest
import torch

from vmp.engine.launch import launch


def test_one_process_runs_in_place():
    called = []
    launch(called.append, "cfg")
    assert called == ["cfg"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs here")
def test_more_gpus_than_there_are_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="2 GPU.*0 can be used; set NUM_GPUS 0"):
        launch(print, "cfg", num_gpus=2)
