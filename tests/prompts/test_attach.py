"""A prompt before somebody else's model gives what the two give one after the other, to the bit."""

import copy
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torchvision
from torch import nn

from vmp.prompts import MotionPrompt, attach
from vmp.prompts.functional import normalize
from vmp.prompts.power_norm import sigmoid
from vmp.solver.optimizer import param_groups

ROOT = Path(__file__).parents[2]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
LAYERS = {name for name, _ in MotionPrompt().named_parameters()}

pytestmark = pytest.mark.usefixtures("_one_thread")


def prompt(**options) -> MotionPrompt:
    return MotionPrompt(sigmoid(m=0.5, n=-0.3), **options)


def bytes_clip(batch: int = 2, frames: int = 5, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, frames, side, side), dtype=torch.uint8)


class ClipNet(nn.Module):
    """Takes (B, 3, T, H, W), and a number to multiply its logits by."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Linear(4, 5)

    def forward(self, clip: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return scale * self.head(self.norm(self.conv(clip)).relu().mean((2, 3, 4)))


class HubOutput(NamedTuple):
    loss: torch.Tensor | None
    logits: torch.Tensor


class HubNet(nn.Module):
    """Takes (B, T, 3, H, W) and labels by name, as the video models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3 * 8 * 8, 6)
        self.classifier = nn.Linear(6, 5)

    def forward(self, pixel_values, labels=None, return_dict=True):
        tokens = self.embed(pixel_values.view(*pixel_values.shape[:2], -1))  # a view, as some take
        logits = self.classifier(tokens.mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return HubOutput(loss, logits) if return_dict else logits


class FrameNet(nn.Module):
    """Takes images (B, 3, H, W), with the two halves of timm's models."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)

    def forward_features(self, x):
        return self.conv(x).relu()

    def forward_head(self, x):
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def small_mvit() -> nn.Module:
    stages = [
        torchvision.models.video.mvit.MSBlockConfig(
            num_heads=heads,
            input_channels=width,
            output_channels=width * grow,
            kernel_q=[3, 3, 3],
            kernel_kv=[3, 3, 3],
            stride_q=[1, 1, 1],
            stride_kv=[1, 2, 2],
        )
        for heads, width, grow in ((1, 16, 2), (2, 32, 1))
    ]
    return torchvision.models.video.mvit.MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=stages,
        residual_pool=False,
        residual_with_cls_embed=True,
        rel_pos_embed=False,
        proj_after_attn=False,
        num_classes=5,
    )


VIDEO_MODELS = {
    "ClipNet": ClipNet,
    "r3d_18": lambda: torchvision.models.video.r3d_18(weights=None, num_classes=5),
    "mc3_18": lambda: torchvision.models.video.mc3_18(weights=None, num_classes=5),
    "MViT": small_mvit,
}


@pytest.mark.parametrize("name", VIDEO_MODELS)
@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_a_video_model_gives_for_a_clip_what_it_gives_for_its_prompts(name, kind):
    model, layer, clip = VIDEO_MODELS[name]().eval(), prompt(), bytes_clip()
    if kind == "floats":
        clip = normalize(clip, layer.mean, layer.std)
    prompts, variation = layer(clip)
    assert prompts.shape == (2, 3, 4, 32, 32)
    found = attach(model, layer)(clip)
    assert torch.equal(found.output, model(prompts))
    assert torch.equal(found.variation, variation)
    assert found.output.shape == (2, 5)


@pytest.mark.slow  # 16 frames of 224 pixels through 36 million parameters
def test_torchvisions_mvit_takes_prompts_in_its_full_size():
    model, layer = torchvision.models.video.mvit_v1_b(weights=None).eval(), prompt()
    clip = bytes_clip(batch=1, frames=17, side=224)
    with torch.no_grad():
        output, _ = attach(model, layer)(clip)
        assert torch.equal(output, model(layer(clip)[0]))


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("argument", ["", "pixel_values"])
def test_a_model_of_transformers_takes_its_clip_and_labels_as_ever(by_name, argument):
    model, layer = HubNet(), prompt(**IMAGENET)
    clip, labels = bytes_clip(side=8), torch.tensor([1, 4])
    prompts, variation = layer(clip)
    wanted = model(prompts.transpose(1, 2).contiguous(), labels=labels)
    attached = attach(model, layer, layout="BTCHW", argument=argument)
    time_first = clip.transpose(1, 2).contiguous()
    if by_name:
        found = attached(pixel_values=time_first, labels=labels)
    else:
        found = attached(time_first, labels)
    assert torch.equal(found.output.logits, wanted.logits)
    assert torch.equal(found.output.loss, wanted.loss)
    assert torch.equal(found.variation, variation)
    (found.output.loss + 2.5 * found.variation).backward()
    assert all(parameter.grad is not None for parameter in attached.parameters())


@pytest.mark.parametrize("layout", ["BCTHW", "BTCHW"])
@pytest.mark.parametrize("kind", ["timm", "torchvision"])
def test_a_model_of_images_gives_the_mean_of_its_logits_for_the_prompts(layout, kind):
    make = {"timm": FrameNet, "torchvision": lambda: torchvision.models.resnet18(num_classes=5)}
    model, layer, clip = make[kind]().eval(), prompt(**IMAGENET), bytes_clip()
    prompts, variation = layer(clip)
    wanted = torch.stack([model(prompts[:, :, t]) for t in range(4)]).mean(0)
    given = clip if layout == "BCTHW" else clip.transpose(1, 2)
    found = attach(model, layer, layout=layout, per_frame=True)(given)
    torch.testing.assert_close(found.output, wanted)
    frames = prompts.transpose(1, 2).flatten(0, 1)
    assert torch.equal(found.output, model(frames).unflatten(0, (2, 4)).mean(1))
    assert torch.equal(found.variation, variation)


def test_frames_of_different_clips_are_not_mixed():
    attached = attach(FrameNet(), prompt(), per_frame=True).eval()
    clip = bytes_clip(batch=3)
    alone = torch.cat([attached(clip[i : i + 1]).output for i in range(3)])
    torch.testing.assert_close(attached(clip).output, alone)


@pytest.mark.parametrize("place", ["second", "by name only", "of any"])
def test_a_clip_can_be_any_argument(place):
    class Second(ClipNet):
        def forward(self, text, frames):
            return super().forward(frames, text)

    class ByName(ClipNet):
        def forward(self, scale, *, frames):
            return super().forward(frames, scale)

    class Any(ClipNet):
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs)

    classes = {"second": Second, "by name only": ByName, "of any": Any}
    model, layer, clip = classes[place]().eval(), prompt(), bytes_clip()
    attached = attach(model, layer, argument="clip" if place == "of any" else "frames")
    calls = {
        "second": [((2.0, clip), {}), ((2.0,), {"frames": clip})],
        "by name only": [((2.0,), {"frames": clip}), ((), {"scale": 2.0, "frames": clip})],
        "of any": [((clip,), {"scale": 2.0}), ((), {"clip": clip, "scale": 2.0})],
    }
    wanted = ClipNet.forward(model, layer(clip)[0], 2.0)
    for args, kwargs in calls[place]:
        assert torch.equal(attached(*args, **kwargs).output, wanted)


def test_the_default_prompt_is_the_papers():
    attached = attach(ClipNet())
    assert isinstance(attached.prompts.power_norm, sigmoid)
    assert attached.prompts.mean == (0.45, 0.45, 0.45)
    assert {name for name, _ in attached.prompts.named_parameters()} == LAYERS


def test_m_and_n_and_the_model_get_gradients():
    attached = attach(ClipNet(), prompt())
    output, variation = attached(bytes_clip())
    (output.square().mean() + 2.5 * variation).backward()
    gradients = {name: parameter.grad for name, parameter in attached.named_parameters()}
    assert all(grad is not None and grad.abs().sum() > 0 for grad in gradients.values())


def test_weights_of_the_model_alone_load_into_it_and_keep_their_names():
    plain, attached = ClipNet(), attach(ClipNet(), prompt())
    attached.model.load_state_dict(plain.state_dict())
    state = attached.state_dict()
    assert set(state) == {f"model.{name}" for name in plain.state_dict()} | {
        f"prompts.{name}" for name in LAYERS
    }
    assert all(
        torch.equal(state[f"model.{name}"], each) for name, each in plain.state_dict().items()
    )


@pytest.mark.parametrize("way", ["state dict", "deepcopy", "pickle"])
def test_a_copy_gives_the_same_to_the_bit(way):
    attached, clip = attach(ClipNet()).eval(), bytes_clip()
    copies = {
        "state dict": lambda: attach(ClipNet()).eval(),
        "deepcopy": lambda: copy.deepcopy(attached),
        "pickle": lambda: pickle.loads(pickle.dumps(attached)),
    }
    other = copies[way]()
    if way == "state dict":
        other.load_state_dict(attached.state_dict())
    for found, wanted in zip(other(clip), attached(clip), strict=True):
        assert torch.equal(found, wanted)
    assert not {id(each) for each in other.parameters()} & {id(p) for p in attached.parameters()}


def test_a_forward_pass_in_evaluation_leaves_nothing_behind():
    attached, clip = attach(ClipNet(), prompt()).eval(), bytes_clip()
    before, given = copy.deepcopy(attached.state_dict()), clip.clone()
    names = set(vars(attached)) | set(vars(attached.prompts))
    attached(clip)
    assert torch.equal(clip, given)
    assert set(vars(attached)) | set(vars(attached.prompts)) == names
    assert all(torch.equal(each, before[name]) for name, each in attached.state_dict().items())


def test_the_prompt_alone_learns_before_a_frozen_model_that_stays_as_it_is():
    attached = attach(ClipNet(), prompt())
    attached.model.requires_grad_(False)
    attached.train()
    assert attached.training
    assert not attached.model.norm.training
    before = copy.deepcopy(attached.state_dict())
    (group,) = attached.param_groups()
    optimizer = torch.optim.SGD([group], lr=0.1, weight_decay=0.5)
    output, variation = attached(bytes_clip())
    (output.square().mean() + variation).backward()
    optimizer.step()
    changed = {k for k, each in attached.state_dict().items() if not torch.equal(each, before[k])}
    assert changed == {f"prompts.{name}" for name in LAYERS}
    attached.model.requires_grad_(True)
    assert attached.train().model.norm.training
    assert not attached.eval().model.training


def test_m_and_n_are_not_decayed():
    attached = attach(ClipNet(), prompt())
    optimizer = torch.optim.AdamW(attached.param_groups(), lr=1e-3, weight_decay=0.05)
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    wanted = {name: 0.0 if name.startswith("prompts.") else 0.05 for name in attached.state_dict()}
    assert {n: decays[id(p)] for n, p in attached.named_parameters()} == {
        name: wanted[name] for name, _ in attached.named_parameters()
    }


def test_the_optimizer_of_this_program_knows_the_prompt_too():
    groups = param_groups(attach(ClipNet(), prompt()), lr=0.1, weight_decay=0.05)
    (found,) = (group for group in groups if group["name"] == "prompts")
    assert len(found["params"]) == 2
    assert found["weight_decay"] == 0


@pytest.mark.parametrize(
    ("model", "options", "side"),
    [
        (ClipNet, {}, 16),
        (HubNet, {"layout": "BTCHW"}, 8),
        (FrameNet, {"per_frame": True}, 16),
    ],
)
def test_a_training_step_is_one_graph_and_gives_what_the_eager_one_gives(model, options, side):
    plain = attach(model(), prompt(), **options)
    compiled, clip = copy.deepcopy(plain), bytes_clip(side=side)
    torch._dynamo.reset()
    compiled.compile(fullgraph=True, backend="aot_eager")
    clip = clip.transpose(1, 2) if options.get("layout") == "BTCHW" else clip
    results = []
    for each in (plain, compiled):
        output, variation = each(clip)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        (logits.square().mean() + variation).backward()
        results.append([logits, variation, *(p.grad for p in each.parameters())])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.dist
def test_it_trains_in_distributed_data_parallel():
    plain = attach(ClipNet(), prompt())
    wrapped, clip = copy.deepcopy(plain), bytes_clip()
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        results = []
        for model in (plain, nn.parallel.DistributedDataParallel(wrapped)):
            for _ in range(2):  # the second finds what the first has left behind
                output, variation = model(clip)
                (output.square().mean() + variation).backward()
            results.append([output, variation, *(each.grad for each in model.parameters())])
    finally:
        torch.distributed.destroy_process_group()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_under_autocast_the_model_gets_its_type_and_v_stays_float32():
    model, layer, clip = ClipNet(), prompt(), bytes_clip()
    with torch.autocast("cpu", torch.bfloat16):
        output, variation = attach(model, layer)(clip)
        assert torch.equal(output, model(layer(clip)[0]))
    assert (output.dtype, variation.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(variation, layer(clip)[1])


def test_a_model_in_half_precision_gets_prompts_in_it():
    model, layer, clip = ClipNet().bfloat16().eval(), prompt(), bytes_clip()
    output, variation = attach(model, layer)(clip)
    assert torch.equal(output, model(layer(clip)[0].bfloat16()))
    assert (output.dtype, variation.dtype) == (torch.bfloat16, torch.float32)


def wrong_calls() -> list:
    clip, frames = bytes_clip(), {"per_frame": True}
    auxiliary = FrameNet()
    auxiliary.fc.register_forward_hook(lambda module, args, output: (output, output))
    return [
        (ClipNet(), {}, (clip.transpose(1, 2),), r"\(2, 5, 3, 32, 32\) was given; layout 'BCTHW'"),
        (HubNet(), {"layout": "BTCHW"}, (clip,), r"is \(B, T\+1, 3, H, W\)"),
        (ClipNet(), {}, (clip[0],), "layout 'BCTHW' is"),
        (ClipNet(), {}, (clip.long(),), "int64 was given; it must be uint8 or normalised floats"),
        (ClipNet(), {}, (clip[:, :, :2],), "2 frames"),
        (ClipNet(), {}, (), "no clip was given to ClipNet; give it by the name 'clip'"),
        (nn.Identity(), {}, (), "by the name 'input'"),
        (auxiliary, frames, (clip,), "tensor of 8 rows, one a frame, not tuple; wrap it"),
        (nn.Flatten(0, 1), frames, (clip,), r"not one of shape \(24, 32, 32\); wrap it"),
    ]


@pytest.mark.parametrize("number", range(len(wrong_calls())))
def test_a_call_that_cannot_be_meant_ends_in_one_line(number):
    model, options, args, message = wrong_calls()[number]
    with pytest.raises(ValueError, match=message) as error:
        attach(model, prompt(), **options)(*args)
    assert "\n" not in str(error.value)


def test_what_the_model_does_not_have_is_refused_at_once():
    with pytest.raises(ValueError, match="layout is 'THWC'; it must be one of BCTHW, BTCHW"):
        attach(ClipNet(), layout="THWC")
    with pytest.raises(ValueError, match="ClipNet has no argument 'pixels'; it has: clip, scale"):
        attach(ClipNet(), argument="pixels")


# What pyproject.toml asks for besides torch, by the names that are imported.
OTHERS = "fvcore iopath yacs yaml pytorchvideo torchvision av decord h5py matplotlib safetensors"
OTHERS += " simplejson tensorboard tqdm numpy tabulate wcwidth"
ALONE = """
import sys
sys.modules.update(dict.fromkeys({others!r}.split()))  # an import of these fails
import torch
from vmp.prompts import MotionPrompt, attach

model = attach(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 4 * 8 * 8, 5)))
for kernel in ("auto", "eager"):
    model.prompts.kernel = kernel
    output, variation = model(torch.randint(0, 256, (2, 3, 5, 8, 8), dtype=torch.uint8))
    (output.sum() + variation).backward()
assert model.prompts.power_norm.m.grad is not None
"""


def test_the_layer_learns_where_torch_alone_is_installed():
    code = ALONE.format(others=OTHERS)
    command = [sys.executable, "-W", "ignore", "-c", code]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_a_traced_model_tells_nothing_of_its_arguments_and_takes_the_clip_first():
    clip = torch.randint(0, 256, (1, 3, 5, 8, 8), dtype=torch.uint8)
    network = torch.nn.Conv3d(3, 2, 1).eval()
    prompt = MotionPrompt()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated, and still used
        traced = torch.jit.trace(network, prompt(clip)[0].detach())
    assert torch.equal(attach(traced, prompt)(clip).output, network(prompt(clip)[0]))


def blocks() -> list[str]:
    text = (ROOT / "docs" / "your_model.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(len(blocks())))
def test_the_code_of_the_page_runs(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    block = blocks()[number]
    for name in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
        pytest.importorskip(name, reason=f"the example needs {name}")
    names = {}
    exec(block, names)
    prompt = names["model"].prompts if "model" in names else names["layer"]
    assert all(each.grad is not None for each in prompt.parameters())
