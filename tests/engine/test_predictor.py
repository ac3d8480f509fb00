"""Predictions for a video of one's own: a test's when it is taken whole, a clip's in a window."""

import numpy as np
import pytest
import torch

from tests.data.test_stream import make_video
from vmp.data import DecodeError, VideoReader
from vmp.data.sampling import clip_frames
from vmp.engine import test as run_test
from vmp.engine.predictor import build_predictor
from vmp.models import build_model

pytestmark = pytest.mark.usefixtures("_one_thread")
SMALL = {"X3D__WIDTH_FACTOR": 1.0, "X3D__DEPTH_FACTOR": 0.2, "X3D__DIM_C5": 64}
SMALL |= {"PROMPT__SIGMOID__M": 1.0, "PROMPT__SIGMOID__N": -1.0}  # attention that moves


@pytest.fixture
def make_predictor(make_cfg, tmp_path):
    """Return a function (overrides) -> (cfg, predictor) of an untrained model."""

    def make(**overrides):
        cfg = make_cfg("x3d", TRAIN__ENABLE=False, **SMALL | overrides)
        path = tmp_path / "weights.pth"
        torch.manual_seed(1)
        model = build_model(cfg)
        with torch.no_grad():  # or else every class is as likely
            model.backbone.net.blocks[-1].proj.weight.mul_(300)
        torch.save({"model": model.state_dict()}, path)
        cfg.defrost()
        cfg.TEST.CHECKPOINT_FILE_PATH = str(path)
        cfg.freeze()
        return cfg, build_predictor(cfg, path)

    return make


@pytest.mark.parametrize(
    ("overrides", "tolerance"),
    [
        # batches of the 2 x 3 views of a video, as the predictor has them
        ({"TEST__BATCH_SIZE": 6}, 0),
        ({"TEST__BATCH_SIZE": 6, "PROMPT__ENABLE": False, "TEST__ENSEMBLE": "logits"}, 0),
        # in others the same clips are rounded otherwise
        ({"TEST__BATCH_SIZE": 8}, 1e-6),
    ],
)
def test_a_whole_video_gets_the_scores_of_the_test(make_predictor, overrides, tolerance):
    views = {"TEST__NUM_ENSEMBLE_VIEWS": 2, "TEST__NUM_SPATIAL_CROPS": 3}
    cfg, predictor = make_predictor(**views, **overrides)
    run_test(cfg)
    stored = np.load(f"{cfg.OUTPUT_DIR}/predictions.npz")
    assert np.ptp(stored["scores"], axis=0).max() > 0.01  # the videos differ
    for path, scores in list(zip(stored["paths"], stored["scores"], strict=True))[:6]:
        prediction = predictor.whole(path)
        assert np.abs(prediction.scores.numpy() - scores).max() <= tolerance
        assert (prediction.start, prediction.stop) == (0, pytest.approx(12 / 25))


def test_a_window_gets_the_mean_over_the_crops_of_the_clip_there(make_predictor, tmp_path):
    _, predictor = make_predictor(TEST__NUM_SPATIAL_CROPS=3)
    path = make_video(tmp_path / "wide.mp4")  # 64 x 48, of which a clip has 42 x 32
    found = list(predictor.slide(path, stride=0.3))
    assert len(found) == 3  # of 10 frames, in 24: from 0, 7.5 and 14
    spreads = []
    with VideoReader(path) as reader:
        for start, prediction in zip((0, 7.5, 14), found, strict=True):
            numbers = clip_frames(start, 10, 5)
            clip = torch.as_tensor(reader.read(numbers, 32)).movedim(-1, 0)
            crops = torch.stack([clip[..., left : left + 32] for left in (0, 5, 10)])
            with torch.inference_mode():
                scores = predictor.model(crops).logits.double().softmax(1)
            assert torch.allclose(prediction.scores, scores.mean(0), atol=1e-9)
            spreads.append(scores.std(0).max().item())
            assert prediction.start == pytest.approx(numbers[0] / 25)
            assert prediction.stop == pytest.approx((numbers[-1] + 1) / 25)
    assert max(spreads) > 1e-3  # the tolerance tells one crop from three


def test_what_is_no_video_or_too_short_a_one_is_refused_by_name(make_predictor, motionshapes):
    _, predictor = make_predictor(DATA__SAMPLING_RATE=9, DATA__SHORT_CLIP="error")
    path = motionshapes / "test" / "000000.mp4"
    for predict in (predictor.whole, lambda each: list(predictor.slide(each))):
        with pytest.raises(ValueError, match=r"000000.mp4: .*DATA.SHORT_CLIP"):
            predict(path)
        with pytest.raises(DecodeError, match=r"index.json: .*Invalid data"):
            predict(motionshapes / "index.json")
        with pytest.raises(DecodeError, match="absent.mp4: No such file"):
            predict(motionshapes / "absent.mp4")


def test_predicting_leaves_nothing_beside_the_videos(make_predictor, motionshapes):
    _, predictor = make_predictor()
    before = sorted(motionshapes.rglob("*"))
    predictor.whole(motionshapes / "test" / "000000.mp4")
    list(predictor.slide(motionshapes / "test" / "000000.mp4"))
    assert sorted(motionshapes.rglob("*")) == before
