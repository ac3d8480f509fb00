"""`tools/bench.py prompt`: the ways that it measures do the same, and its table tells it."""

import json
import statistics

import bench
import bench_prompt
import pytest
import torch

SHAPE = (2, 3, 5, 16, 20)
LAYERS = ["released", "eager", "fused", "fused, float32 clip"]
COPIES = ["copy", "copy, old memory"]


@pytest.fixture(scope="module")
def ways():
    return {way.name: way for way in bench_prompt.make_ways(SHAPE, "cpu")}


@pytest.mark.parametrize("name", LAYERS[1:])
def test_the_released_layer_and_ours_have_the_same_prompts_variation_and_gradients(name, ways):
    results = []
    for way in (ways["released"], ways[name]):
        outputs = way.forward()
        results.append([*(each.detach() for each in outputs), *way.backward(outputs)])
    assert results[0][0].shape == (2, 3, 4, 16, 20)
    assert all(grad.abs() > 0.1 for grad in results[0][2:])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_reads_and_writes_as_many_bytes_as_a_layer_must(name, ways):
    clip, prompts = 2 * 3 * 5 * 16 * 20, 4 * 2 * 3 * 4 * 16 * 20
    assert ways[name].moved == ways["fused"].moved == 2 * clip + 2 * prompts
    copied = ways[name].forward()
    assert torch.equal(copied, torch.ones_like(copied))
    assert 2 * 2 * copied.nbytes == ways[name].moved  # read and written, in each of two passes


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_table_has_the_ratios_of_what_was_measured(device, tmp_path, capsys):
    shape, out = ",".join(map(str, SHAPE)), tmp_path / "out.jsonl"
    options = ["--repeats", "3", "--device", device, "--out", str(out)]
    bench.main(["prompt", "--shapes", shape, *options])
    result = json.loads(out.read_text())
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    table = {line[1]: line[2:] for line in lines if line[0] == "2 x 3 x 5 x 16 x 20"}
    assert list(table) == list(result["ways"]) == LAYERS + COPIES
    seconds = {
        name: [each["forward"] + each["backward"] for each in way["seconds"]]
        for name, way in result["ways"].items()
    }
    for name, way in result["ways"].items():
        *_, ratio, memory, rate, share = table[name]
        pairs = zip(seconds["released"], seconds[name], strict=True)
        wanted = statistics.median(one / other for one, other in pairs)
        assert ratio.split(" (")[0] == ("" if name == "released" else f"{wanted:.2f}")
        assert memory == f"{way['peak_bytes'] / (4 * 2 * 3 * 4 * 16 * 20):.2f}"
        rates = {
            each: result["ways"][each]["moved"] / statistics.median(seconds[each])
            for each in (name, "copy")
        }
        assert rate == f"{rates[name] / 1e9:.1f}"
        assert share == f"{100 * rates[name] / rates['copy']:.0f}"


def test_peaks_count_the_prompts_and_what_autograd_saves_but_not_the_clip(ways):
    prompts = 4 * 2 * 3 * 4 * 16 * 20
    peaks = {name: bench_prompt.peak_bytes(way, "cpu") / prompts for name, way in ways.items()}
    assert peaks["copy"] == pytest.approx(1 + 5 / 16, abs=0.01)  # half in each pass
    assert peaks["copy, old memory"] == pytest.approx(0, abs=0.01)
    # prompts, their attention three times, and at least the exponential, the sum and the quotient
    assert peaks["released"] >= 1 + 1 + 3 / 3


def test_a_fused_prompt_of_several_blocks_takes_little_more_memory_than_the_prompts():
    clip = torch.randint(256, (4, 3, 33, 224, 224), dtype=torch.uint8)
    grad = torch.randn(4, 3, 32, 224, 224)
    layer = bench_prompt.MotionPrompt(kernel="cpu")
    peak = bench_prompt.peak_bytes(bench_prompt.layer_way("fused", layer, clip, grad), "cpu")
    assert peak <= 1.2 * grad.nbytes


def test_a_shape_that_is_no_clip_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench.main(["prompt", "--shapes", "1,3,2,8,8"])
    assert "'1,3,2,8,8' is not B,3,T+1,H,W with T of 2 or more" in capsys.readouterr().err
