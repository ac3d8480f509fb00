import pytest
import torch

from vmp.metrics import ensemble_views


def all_views(num_videos, num_views, classes=5):
    places = torch.arange(num_videos * num_views)
    scores = torch.randn(len(places), classes) * 10.0 ** torch.randint(-6, 6, (len(places), 1))
    return scores, places // num_views, places % num_views


def test_the_views_of_a_video_are_averaged():
    scores = torch.tensor([[1.0, 0.0], [0.0, 4.0], [0.5, 0.5], [0.0, 1.0]])
    video, view = torch.tensor([1, 0, 1, 0]), torch.tensor([1, 0, 0, 1])
    ensemble = ensemble_views(scores, video, view, num_videos=2, num_views=2)
    assert ensemble.scores.tolist() == [[0.0, 2.5], [0.75, 0.25]]
    assert ensemble.video.tolist() == [0, 1]
    assert ensemble.incomplete == []


def test_the_order_in_which_views_arrive_does_not_change_a_bit():
    scores, video, view = all_views(num_videos=11, num_views=30)
    first = ensemble_views(scores, video, view, 11, 30)
    for _ in range(5):
        order = torch.randperm(len(scores))
        again = ensemble_views(scores[order], video[order], view[order], 11, 30)
        assert torch.equal(again.scores, first.scores)
        assert torch.equal(again.video, first.video)


def test_a_video_has_the_same_score_whatever_others_there_are():
    scores, video, view = all_views(num_videos=40, num_views=7)
    alone = ensemble_views(scores[:7], video[:7], view[:7], 1, 7)
    assert torch.equal(alone.scores[0], ensemble_views(scores, video, view, 40, 7).scores[0])


def test_sums_are_in_float64():
    scores, video, view = all_views(num_videos=3, num_views=30)
    ensemble = ensemble_views(scores, video, view, 3, 30)
    assert ensemble.scores.dtype == torch.float64
    expected = scores.double().view(3, 30, -1).mean(dim=1)
    torch.testing.assert_close(ensemble.scores, expected, rtol=1e-12, atol=1e-12)


def test_incomplete_videos_are_named_and_left_out():
    scores, video, view = all_views(num_videos=4, num_views=3)
    kept = (video != 2) & ~((video == 1) & (view == 0))
    ensemble = ensemble_views(scores[kept], video[kept], view[kept], num_videos=5, num_views=3)
    assert ensemble.incomplete == [1, 2, 4]
    assert ensemble.video.tolist() == [0, 3]
    whole = ensemble_views(scores, video, view, num_videos=4, num_views=3)
    assert torch.equal(ensemble.scores, whole.scores[[0, 3]])


def test_without_any_view_everything_is_incomplete():
    none = torch.zeros(0, dtype=torch.int64)
    ensemble = ensemble_views(torch.zeros(0, 6), none, none, num_videos=2, num_views=3)
    assert ensemble.scores.shape == (0, 6)
    assert ensemble.incomplete == [0, 1]


def test_a_view_given_twice_is_refused():
    scores, video, view = all_views(num_videos=3, num_views=2)
    video, view = torch.cat([video, video[3:4]]), torch.cat([view, view[3:4]])
    with pytest.raises(ValueError, match="view 1 of video 1 was evaluated more than once"):
        ensemble_views(torch.cat([scores, scores[3:4]]), video, view, 3, 2)


def test_a_doubled_view_cannot_stand_in_for_a_missing_one():
    scores, video, view = all_views(num_videos=2, num_views=2)
    view[0] = 1
    with pytest.raises(ValueError, match="more than once"):
        ensemble_views(scores, video, view, 2, 2)


@pytest.mark.parametrize(
    ("video", "view", "message"),
    [
        ([0, 2], [0, 0], "video indices from 0 to 2"),
        ([0, 1], [0, 3], "view indices"),
        ([0], [0], "V, C"),
    ],
)
def test_indices_that_do_not_fit_are_refused(video, view, message):
    with pytest.raises(ValueError, match=message):
        ensemble_views(torch.zeros(2, 4), torch.tensor(video), torch.tensor(view), 2, 3)
