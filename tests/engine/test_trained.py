from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import ROOT
from vmp.config import load_cfg
from vmp.engine.trained import build_trained, find_checkpoint, find_config
from vmp.models import build_model
from vmp.utils.files import write_text

TINY = ["X3D.WIDTH_FACTOR", "1.0", "X3D.DEPTH_FACTOR", "0.2", "X3D.DIM_C5", "64"]


def tiny_cfg(tmp_path, *opts):
    recipe = tmp_path / "recipe.yaml"
    base = ROOT / "configs" / "base"
    bases = f"[{base}/X3D_XS.yaml, {base}/MotionShapes_CPU.yaml]"
    write_text(recipe, f"_BASE_: {bases}\nTRAIN: {{DATASET: csv}}\nMODEL: {{NUM_CLASSES: 3}}\n")
    return load_cfg(recipe, [*TINY, "DATA.PATH_TO_DATA_DIR", str(tmp_path), *opts])


@pytest.fixture
def run(tmp_path):
    """A run's folder: its config, a checkpoint and what its test has stored."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    cfg = tiny_cfg(tmp_path)
    torch.manual_seed(0)
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "checkpoints" / "epoch_00001.pth")
    write_text(folder / "config.yaml", cfg.dump())
    np.savez(folder / "predictions.npz", class_names=np.array(["run", "jump", "sit"]))
    return folder, cfg, model


def test_a_run_gives_the_model_it_has_trained_ready_to_predict(run):
    folder, cfg, model = run
    checkpoint = find_checkpoint(folder)
    trained = build_trained(load_cfg(find_config(checkpoint)), checkpoint)
    assert not trained.model.training
    clip = torch.randint(0, 256, (1, 3, 8, 48, 48), dtype=torch.uint8)
    assert torch.equal(trained.model(clip).logits, model.eval()(clip).logits)


def test_names_are_those_of_the_data_set_then_of_the_runs_test_then_numbers(run, tmp_path):
    folder, cfg, _ = run
    checkpoint = find_checkpoint(folder)
    assert build_trained(cfg, checkpoint).class_names == ("run", "jump", "sit")
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert build_trained(cfg, checkpoint).class_names == ("a", "b", "c")
    (tmp_path / "classes.txt").unlink()
    (folder / "predictions.npz").write_bytes(b"damaged")
    assert build_trained(cfg, checkpoint).class_names == ("0", "1", "2")


def test_weights_that_do_not_fit_whole_are_refused(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(ValueError, match="a test needs every weight"):
        build_trained(tiny_cfg(tmp_path, "MODEL.NUM_CLASSES", "4"), find_checkpoint(folder))


def test_what_is_no_run_is_refused_with_what_to_name(tmp_path):
    with pytest.raises(ValueError, match="does not exist; name a checkpoint or the OUTPUT_DIR"):
        find_checkpoint(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no checkpoint in it"):
        find_checkpoint(tmp_path)
    (tmp_path / "weights.pth").touch()
    with pytest.raises(ValueError, match="lies in no run with a config.yaml"):
        find_config(tmp_path / "weights.pth")


def test_a_checkpoint_right_below_the_root_or_beside_other_results_is_in_no_run(run, tmp_path):
    folder, cfg, _ = run
    with pytest.raises(ValueError, match="lies in no run"):
        find_config(Path("/weights.pth"))
    (tmp_path / "kept").mkdir()
    moved = find_checkpoint(folder).rename(tmp_path / "kept" / "weights.pth")
    (folder / "predictions.npz").rename(tmp_path / "predictions.npz")
    assert build_trained(cfg, moved).class_names == ("0", "1", "2")
