"""A prompt that has become the identity says so, and finding that out changes no score."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.conftest import log_of, results_of
from vmp import engine
from vmp.data import build_loader
from vmp.engine import dimming, testing
from vmp.engine.evaluate import predict
from vmp.models import build_model
from vmp.prompts import MotionPrompt
from vmp.utils.files import read_tensors

pytestmark = pytest.mark.usefixtures("_one_thread")

CPU = torch.device("cpu")
# of the authors' site, as learned on FineGym with lambda 10 and on MPII Cooking 2
OPEN = {"PROMPT__SIGMOID__M": 1.28, "PROMPT__SIGMOID__N": -3.27}
SHUT = {"PROMPT__SIGMOID__M": 0.257, "PROMPT__SIGMOID__N": 0.053}
IDENTITY = {"PROMPT__POWER_NORM": "identity"}


def measure(cfg, split="test"):
    with build_loader(cfg, split) as loader:
        return dimming.measure_dimming(build_model(cfg), loader, device=CPU)


def middle_views(cfg, split):
    """Return the clips that are the middle view of their video, (16, 3, T + 1, H, W)."""
    with build_loader(cfg, split) as loader:
        batches = list(loader.epoch(0))
        middle = loader.num_views // 2
    return torch.cat([batch.clip[batch.view == middle] for batch in batches])


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize(("m", "n"), [(0.9, -0.25), (0.3, -0.4), (1.06, -0.9)])
def test_the_share_is_that_of_equations_1_to_3_in_float64(make_cfg, m, n, split):
    cfg = make_cfg(PROMPT__SIGMOID__M=m, PROMPT__SIGMOID__N=n)
    clips = middle_views(cfg, split).double().numpy() / 255
    assert len(clips) == dimming.CLIPS
    differences = np.diff(np.einsum("c,bcthw->bthw", (0.299, 0.587, 0.114), clips), axis=1)
    a, b = 5 / (0.45 * abs(np.tanh(m)) + 0.1), 0.6 * np.tanh(n)
    attention = 1 / (1 + np.exp(-a * (differences - b)))
    assert abs(attention - 0.9).min() > 2e-6  # so that rounding decides nothing
    share = (attention < 0.9).mean()
    assert 0 < share < 1
    assert measure(cfg, split)["0"]["dimmed"] == share


def test_each_pathway_is_measured_by_its_own_prompt_on_its_own_frames(make_cfg):
    cfg = make_cfg(
        MODEL__NAME="slowfast",
        DATA__NUM_FRAMES=8,
        SLOWFAST__DEPTH=18,
        SLOWFAST__WIDTH=16,
        PROMPT__PATHWAYS=[0, 1],
        **SHUT,
    )
    model = build_model(cfg)
    with torch.no_grad():
        model.prompts["1"].power_norm.n.fill_(-0.6)
    with build_loader(cfg, "val") as loader:
        found = dimming.measure_dimming(model, loader, device=CPU)
    clips = middle_views(cfg, "val")
    for pathway, stride in (("0", 4), ("1", 1)):
        attention = model.prompts[pathway].attention(clips[:, :, 0:9:stride])
        assert found[pathway]["dimmed"] == float((attention < 0.9).double().mean())
    assert found["0"]["dimmed"] > 0.5 > found["1"]["dimmed"] > 0


def test_one_thread_computes_it_since_last_bits_depend_on_the_threads(make_cfg, monkeypatch):
    before, seen = torch.get_num_threads() + 1, set()
    attention = MotionPrompt.attention

    def noting(self, clip):
        seen.add(torch.get_num_threads())
        return attention(self, clip)

    monkeypatch.setattr(MotionPrompt, "attention", noting)
    torch.set_num_threads(before)
    measure(make_cfg(**SHUT))
    assert seen == {1}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("options", "collapsed"), [(IDENTITY, True), (OPEN, True), (SHUT, False)])
def test_results_and_log_say_whether_the_prompt_has_become_the_identity(
    make_cfg, options, collapsed, caplog, monkeypatch
):
    # a run sets it to False, of which some versions of pytest take note and others do not
    monkeypatch.setattr(logging.getLogger("vmp"), "propagate", True)
    caplog.set_level(logging.INFO, "vmp")
    cfg = make_cfg(TRAIN__EVAL_PERIOD=1, SOLVER__MAX_EPOCH=1, PROMPT__LR_MULT=0.0, **options)
    engine.train(cfg)
    engine.test(cfg)
    results = results_of(cfg)
    said = results["prompts"]["0"]
    assert results["prompts_rule"] == dimming.RULE
    assert said["collapsed"] is collapsed
    assert (said["dimmed"] < 0.01) is collapsed
    assert {"f0", "dimmed", "collapsed"} <= said.keys()
    (validation,) = log_of(cfg, "val")
    assert {"f0", "dimmed", "collapsed"} <= validation["prompt"]["0"].keys()
    assert validation["prompt"]["0"]["collapsed"] is collapsed
    told = [each for each in dict.fromkeys(caplog.records) if "dims" in each.message]
    assert [each.levelname for each in told] == ["WARNING" if collapsed else "INFO"] * 2
    assert all(("it has collapsed to the identity" in each.message) is collapsed for each in told)


def test_measuring_changes_no_bit_of_the_scores(make_cfg, monkeypatch):
    cfg = make_cfg("x3d", SOLVER__MAX_EPOCH=1)
    engine.train(cfg)
    files = []
    for measured in (True, False):
        if not measured:
            monkeypatch.setattr(testing, "measure_dimming", lambda *args, **options: {})
        engine.test(cfg)
        results = results_of(cfg)
        assert ("dimmed" in results["prompts"]["0"]) is measured
        results["prompts"] = results.pop("prompts_rule", None)
        files.append((results["metrics"], Path(cfg.OUTPUT_DIR, "predictions.npz").read_bytes()))
    assert files[0] == files[1]


def test_an_evaluation_after_it_evaluates_everything(make_cfg):
    cfg = make_cfg()
    model = build_model(cfg)
    with build_loader(cfg, "val") as loader:
        before = predict(model, loader, device=CPU)
        dimming.measure_dimming(model, loader, device=CPU)
        after = predict(model, loader, device=CPU)
    assert torch.equal(before.scores, after.scores)


def test_of_many_videos_it_decodes_sixteen_views_or_fewer(make_cfg, monkeypatch):
    cfg = make_cfg(**SHUT)
    with build_loader(cfg, "test") as loader:
        loader.records[:] = loader.records * 2
        loader.plan.__init__(len(loader.records) * 2, 8)  # two views each
        seen = []
        epoch = loader.epoch
        monkeypatch.setattr(loader, "epoch", lambda n: (seen.append(b) or b for b in epoch(n)))
        dimming.measure_dimming(build_model(cfg), loader, device=CPU)
    assert torch.cat([batch.video for batch in seen]).tolist() == list(range(0, 32, 2))
    assert set(torch.cat([batch.view for batch in seen]).tolist()) == {1}


def test_what_can_not_be_decoded_is_left_out_and_if_all_is_nothing_is_said(make_cfg):
    cfg = make_cfg(**SHUT)
    whole = measure(cfg)
    with build_loader(cfg, "test") as loader:
        loader.records[3] = loader.records[3]._replace(excluded="broken")
        part = dimming.measure_dimming(build_model(cfg), loader, device=CPU)
        assert part["0"]["dimmed"] != whole["0"]["dimmed"]
        loader.records[:] = [record._replace(excluded="broken") for record in loader.records]
        assert dimming.measure_dimming(build_model(cfg), loader, device=CPU) == {}


def test_without_a_prompt_nothing_is_measured_and_nothing_said(make_cfg):
    cfg = make_cfg(PROMPT__ENABLE=False, SOLVER__MAX_EPOCH=1)
    engine.run(cfg)
    results = results_of(cfg)
    assert results["prompts"] == {}
    assert "prompts_rule" not in results


def test_the_identity_is_trained_saved_and_loaded_without_a_parameter_of_its_own(make_cfg):
    cfg = make_cfg("x3d", SOLVER__MAX_EPOCH=1, **IDENTITY)
    engine.run(cfg)
    (path,) = Path(cfg.OUTPUT_DIR, "checkpoints").glob("*.pth")
    state = read_tensors(path)
    assert not [name for name in state["model"] if name.startswith("prompts")]
    assert {group["name"] for group in state["optimizer"]["param_groups"]} == {
        "weights",
        "norms and biases",
    }
    values = results_of(cfg)["prompts"]["0"]
    assert values == {"f0": 1.0, "dimmed": 0.0, "collapsed": True}
