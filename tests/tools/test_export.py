import json
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec

import export
import export_model
import numpy as np
import pytest
import torch
from export_model import COMPARED, FACTS, Shape, compare, measure, random_clip

from tests.conftest import ROOT
from tests.data.conftest import write_video
from tests.models.tiny import TINY
from tests.tools.test_extract_features import write_run
from vmp.config import load_cfg
from vmp.data import build_loader
from vmp.engine.build import build_device
from vmp.engine.evaluate import predict
from vmp.engine.trained import build_trained

pytestmark = pytest.mark.usefixtures("_one_thread")

QUICK = ("slowfast", "timesformer")
SMALL = ("PROMPT.SIGMOID.M", 0.5, "PROMPT.SIGMOID.N", 0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a network as small as can be."""
    root = tmp_path_factory.mktemp("export")
    (root / "classes.txt").write_text("run\njump\nsit\n")
    return write_run(root, "x3d", *SMALL, "X3D.DEPTH_FACTOR", 0.2, "DATA.TEST_CROP_SIZE", 32)


@pytest.fixture(scope="module")
def exported(run):
    """A .pt2 file of it, with the defaults."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert convert(monkeypatch, run, run / "model.pt2", "--variation") == ""
    return run / "model.pt2"


def convert(monkeypatch, run, out, *words) -> str:
    """Run the tool; return the error line, "" if there was none."""
    given = ["export.py", "--checkpoint", run, "--out", out, *words]
    monkeypatch.setattr(sys, "argv", [str(word) for word in given])
    try:
        export.run_cli(export.main)
    except SystemExit as end:
        return str(end.code)
    return ""


def load(out):
    """Return what runs a .pt2 file, and its facts."""
    files = {FACTS: ""}
    module = torch.export.load(out, extra_files=files).module()
    return module, json.loads(files[FACTS])


# --------------------------------------------------------------------------- .pt2
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TINY],
)
def test_every_backbone_with_its_prompt_is_a_program_for_any_number_of_clips(
    name, tmp_path, monkeypatch, capsys
):
    run, out = write_run(tmp_path, name, *SMALL), tmp_path / "out" / "model.pt2"
    assert convert(monkeypatch, run, out, "--variation") == ""
    told = capsys.readouterr().out
    assert re.findall(r"batch of (\d+): largest difference of logits (\S+)", told)
    cfg = load_cfg(run / "config.yaml")
    model = build_trained(cfg, run / "checkpoints" / "epoch_00001.pth").model
    module, facts = load(out)
    for number in (1, 2, 5):
        clip = torch.randint(256, (number, 3, 9, 64, 64), dtype=torch.uint8)
        with torch.no_grad():
            logits, variation = module(clip)
            expected = model(clip)
        torch.testing.assert_close(logits, expected.logits)
        torch.testing.assert_close(variation, expected.variation)
        assert variation > 0
    assert (facts["model"], facts["frames"], facts["crop"]) == (name, 9, 64)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_model_without_a_prompt_takes_a_frame_less(name, tmp_path, monkeypatch):
    run, out = write_run(tmp_path, name, "PROMPT.ENABLE", False), tmp_path / "model.pt2"
    said = convert(monkeypatch, run, out, "--variation")
    assert "the model has no motion prompt, so there is no V" in said
    assert convert(monkeypatch, run, out) == ""
    assert load(out)[0](torch.zeros(3, 3, 8, 64, 64, dtype=torch.uint8)).shape == (3, 3)


def test_the_facts_say_how_to_use_it_and_what_it_was_made_of(exported):
    facts = load(exported)[1]
    assert facts["class_names"] == ["run", "jump", "sit"]
    assert facts["mean"] == [0.45] * 3
    assert facts["outputs"] == ["logits", "variation"]
    assert facts["prompts"]["0"]["m"] == pytest.approx(0.5)
    assert (facts["sampling_rate"], facts["dtype"]) == (1, "uint8")
    assert len(facts["checkpoint_sha256"]) == 64


def test_a_file_says_nothing_of_the_machine_it_was_made_on(exported):
    with zipfile.ZipFile(exported) as archive:
        texts = {name: archive.read(name).decode("latin1") for name in archive.namelist()}
    assert [name for name, text in texts.items() if str(ROOT) in text] == []


def test_another_input_a_fixed_batch_and_another_crop_can_be_asked_for(run, tmp_path, monkeypatch):
    out = tmp_path / "model.pt2"
    words = ("--input", "float32", "--batch", 2, "--crop", 64, "MODEL.ACT_CHECKPOINT", True)
    assert convert(monkeypatch, run, out, *words) == ""
    module, facts = load(out)
    clip = torch.randint(256, (2, 3, 9, 64, 64), dtype=torch.uint8)
    trained = build_trained(load_cfg(run / "config.yaml"), run / "checkpoints/epoch_00001.pth")
    normalised = (clip / 255 - 0.45) / 0.225
    with torch.no_grad():
        torch.testing.assert_close(module(normalised), trained.model(clip).logits)
    assert (facts["dtype"], facts["crop"]) == ("float32", 64)
    with pytest.raises((AssertionError, RuntimeError)):
        module(normalised[:1])


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["gamma", "maxexp", "sigme", "asinhe", "identity"])
def test_every_power_normalisation_can_be_inside(norm, tmp_path, monkeypatch):
    run = write_run(tmp_path, "x3d", "PROMPT.POWER_NORM", norm)
    assert convert(monkeypatch, run, tmp_path / "model.pt2", "--crop", 32, "--variation") == ""


def test_a_pt2_file_runs_without_this_package(exported, tmp_path):
    code = (
        "import sys, torch\n"
        f"module = torch.export.load({str(exported)!r}).module()\n"
        "logits, variation = module(torch.zeros(2, 3, 9, 32, 32, dtype=torch.uint8))\n"
        "print(tuple(logits.shape))\n"
        "assert 'vmp' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.stdout == "(2, 3)\n", ended.stderr


# --------------------------------------------------------------------------- parity
def test_a_program_that_computes_something_else_is_refused(run, exported, tmp_path, monkeypatch):
    right = export_model.torch_runner
    monkeypatch.setattr(export_model, "trace", lambda *_: torch.export.load(exported))

    def wrong(data):
        run, name = right(data)
        return lambda clip: [output * 1.01 for output in run(clip)], name

    monkeypatch.setattr(export_model, "torch_runner", wrong)
    said = convert(monkeypatch, run, tmp_path / "model.pt2", "--variation")
    assert "logits and variation differ by more than 0.001 of their range from the model's" in said
    assert not (tmp_path / "model.pt2").exists()


def test_nan_another_shape_and_another_type_are_no_match(capsys):
    wanted = torch.tensor([[1.0, 2.0]])
    assert measure([wanted], [wanted])["logits"][0] == 0
    for found in (wanted[:, :1], wanted.double(), torch.full_like(wanted, torch.nan)):
        with pytest.raises(ValueError, match="logits differ"):
            compare(lambda clip, found=found: [found], [torch.zeros(1)], [[wanted]], "it")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_clips_that_are_compared_move_and_differ(dtype):
    shape = Shape(None, 9, 32, dtype)
    one, three = (random_clip(shape, number).float() for number in COMPARED)
    assert (one.diff(dim=2) != 0).float().mean() > 0.9
    assert not torch.equal(three[0], three[1])


# --------------------------------------------------------------------------- ONNX
def session_of(out):
    onnxruntime = pytest.importorskip("onnxruntime")
    return onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])


def needs_onnx():
    for module in export.EXTRA:
        pytest.importorskip(module, reason=f"{module} is in the extra export")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name != "x3d" else ()) for name in TINY]
)
def test_onnxruntime_gives_the_logits_of_every_backbone(name, tmp_path, monkeypatch):
    needs_onnx()
    run, out = write_run(tmp_path, name, *SMALL), tmp_path / "model.onnx"
    assert convert(monkeypatch, run, out, "--variation") == ""
    session = session_of(out)
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type) == ("clip", "tensor(uint8)")
    assert taken.shape == ["batch", 3, 9, 64, 64]
    assert [each.name for each in session.get_outputs()] == ["logits", "variation"]
    clip = torch.randint(256, (4, 3, 9, 64, 64), dtype=torch.uint8)
    trained = build_trained(load_cfg(run / "config.yaml"), run / "checkpoints/epoch_00001.pth")
    with torch.no_grad():
        expected = trained.model(clip)
    logits, variation = session.run(None, {"clip": clip.numpy()})
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(variation, expected.variation, rtol=1e-4)
    facts = json.loads(session.get_modelmeta().custom_metadata_map[FACTS])
    assert facts["class_names"] == ["0", "1", "2"]
    assert str(ROOT) not in out.read_bytes().decode("latin1")


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_onnxruntime_runs_every_backbone_without_a_prompt(name, tmp_path, monkeypatch):
    needs_onnx()
    run, out = write_run(tmp_path, name, "PROMPT.ENABLE", False), tmp_path / "model.onnx"
    assert convert(monkeypatch, run, out) == ""
    clip = np.zeros((2, 3, 8, 64, 64), dtype=np.uint8)
    assert session_of(out).run(None, {"clip": clip})[0].shape == (2, 3)


@pytest.mark.slow
def test_another_opset_is_written_or_refused_in_a_line(run, tmp_path, monkeypatch):
    needs_onnx()
    import onnx

    out = tmp_path / "model.onnx"
    assert convert(monkeypatch, run, out, "--opset", 20) == ""
    (opset,) = (each.version for each in onnx.load(out).opset_import if each.domain == "")
    assert opset == 20
    said = convert(monkeypatch, run, tmp_path / "other.onnx", "--opset", 99)
    assert re.search(r"^error: torch .* (writes opset \d+, not --opset 99|opset 99)", said)
    assert "\n" not in said
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.slow
def test_the_program_of_the_page_predicts_what_the_test_does(tmp_path, monkeypatch, capsys):
    """docs/export.md: numpy, PyAV and onnxruntime alone, on a video."""
    needs_onnx()
    for number in range(2):
        write_video(tmp_path / f"{number}.mp4", 12 + number, size=(72, 96), first=50 * number)
    (tmp_path / "test.csv").write_text("0.mp4 0\n1.mp4 1\n")
    run = write_run(tmp_path, "x3d", "TEST.NUM_ENSEMBLE_VIEWS", 1, "TEST.NUM_SPATIAL_CROPS", 1)
    assert convert(monkeypatch, run, tmp_path / "model.onnx") == ""
    cfg = load_cfg(run / "config.yaml")
    model = build_trained(cfg, run / "checkpoints" / "epoch_00001.pth").model
    with build_loader(cfg, "test") as loader:
        expected = predict(model, loader, device=build_device(cfg)).scores
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for number in range(2):
        capsys.readouterr()
        names = {}
        exec(code.replace("video.mp4", f"{number}.mp4"), names)
        np.testing.assert_allclose(names["scores"], expected[number], atol=2e-3)
        assert capsys.readouterr().out.split()[0] == str(int(expected[number].argmax()))


# --------------------------------------------------------------------------- what is wrong
def test_without_the_extra_it_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export, "find_spec", lambda name: None if name == "onnxscript" else find_spec("json")
    )
    said = convert(monkeypatch, run, tmp_path / "model.onnx")
    assert "needs the extra export (onnxscript not found): pip install 'vmp[export]'" in said


WRONG = {
    "ends in .pth; it must end in .onnx or .pt2": ["model.pth"],
    "ends in nothing": ["model"],
    "folder.pt2 is a folder; name a file": ["folder.pt2"],
    "there.pt2 exists; delete it or name another": ["there.pt2"],
    "can't be written: [Errno 17] File exists": ["there.pt2/model.pt2"],
    "can't be written: [Errno 2] No such file": ["/proc/nowhere/model.pt2"],
    "it does not fit the model": ["model.pt2", "X3D.DIM_C5", 64],
    "it does not exist; name a checkpoint": ["model.pt2", "--checkpoint", "nowhere"],
}


@pytest.mark.parametrize("message", WRONG)
def test_a_mistake_is_told_in_one_line(message, run, tmp_path, monkeypatch):
    (tmp_path / "folder.pt2").mkdir()
    (tmp_path / "there.pt2").touch()
    out, *words = WRONG[message]
    said = convert(monkeypatch, run, tmp_path / out, *words)
    assert said.startswith("error: ")
    assert message in said
    assert "\n" not in said
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "a.pt2", "--opset", "18"], "--opset is for .onnx"),
        (["--out", "a.onnx", "--batch", "0"], "--batch is 0; it must be at least 1"),
        (["--out", "a.onnx", "--input", "int8"], "invalid choice: 'int8'"),
        ([], "--out"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        export.parse_args(["--checkpoint", "run", *words])
    assert message in capsys.readouterr().err
