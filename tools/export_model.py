"""What `tools/export.py` does: trace a trained model, write it, and compare what was written."""

import argparse
import contextlib
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from export import ONNX
from fvcore.common.config import CfgNode
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

import vmp
from vmp.config import load_cfg
from vmp.engine.provenance import describe_prompts, hash_config
from vmp.engine.trained import Trained, build_trained, find_checkpoint, find_config
from vmp.models import VideoModel
from vmp.prompts import MotionPrompt
from vmp.utils.files import write_atomically

# Where a file says what it is: a key of ONNX's metadata_props, a file beside the graph of a .pt2.
FACTS = "vmp"
CLIP, LOGITS, VARIATION = "clip", "logits", "variation"
# Clips of the two batches that are compared; the graph is traced with another number.
COMPARED, TRACED = (1, 3), 2
# How far logits may be off, as a share of the range they span, and V, as a share of itself. The
# least of both: rounding is a share of the logits themselves, whose range may be far smaller.
TOLERANCE, LEAST_RANGE, LEAST_VARIATION = 1e-3, 1e-3, 1e-6
# A graph of ONNX is a message of protobuf, which can't be larger.
LARGEST_ONNX = 2 * 10**9
# They speak of what is no concern of who exports.
TALKATIVE = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")

Run = Callable[[Tensor], Sequence[Tensor]]


class Shape(NamedTuple):
    """What goes in.

    Attributes:
        batch: clips; None is any number.
        frames: T, one more than the backbone sees with a prompt.
        crop: side, pixels.
        dtype: uint8, or float32 for normalised clips.
    """

    batch: int | None
    frames: int
    crop: int
    dtype: torch.dtype

    def __str__(self) -> str:
        sides = f"3, {self.frames}, {self.crop}, {self.crop}"
        return f"({self.batch or 'B'}, {sides}) {str(self.dtype).removeprefix('torch.')}"


class Program(nn.Module):
    """A model that gives tensors alone: logits (B, classes), and V if asked for."""

    def __init__(self, model: VideoModel, variation: bool) -> None:
        super().__init__()
        self.model = model
        self.variation = variation

    def forward(self, clip: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits, or logits and V."""
        out = self.model(clip)
        return (out.logits, out.variation) if self.variation else out.logits


def export(args: argparse.Namespace) -> None:
    """Load, trace, compare, and write.

    Args:
        args: of the command line.

    Raises:
        ValueError: the checkpoint does not fit, the model can't be exported like that, or what
            was written computes something else.
    """
    checkpoint = find_checkpoint(args.checkpoint)
    cfg = load_cfg(args.cfg or find_config(checkpoint), args.opts)
    with quiet():
        trained = build_trained(cfg, checkpoint)
    if args.variation and not trained.model.prompts:
        raise ValueError(
            "--variation: the model has no motion prompt, so there is no V; leave it out"
        )
    shape = build_shape(cfg, args, trained.model)
    program = Program(trained.model, args.variation)
    clips = [random_clip(shape, number) for number in _numbers(shape)]
    wanted = [run_program(program, clip) for clip in clips]  # by the kernels that a test takes
    facts = json.dumps(build_facts(cfg, trained, shape, args.variation))
    exported = trace(program, shape)
    if args.out.suffix == ONNX:
        data = onnx_bytes(exported, facts, shape, args.opset)
        run, name = onnx_runner(data)
    else:
        data = torch_bytes(exported, facts)
        run, name = torch_runner(data)
    compare(run, clips, wanted, f"{args.out} by {name}")
    write_atomically(args.out, lambda file: file.write(data))
    outputs = f"{LOGITS} ({shape.batch or 'B'}, {len(trained.class_names)}) float32"
    outputs += f", {VARIATION}" if args.variation else ""
    print(f"wrote {args.out} ({len(data) / 1e6:.1f} MB): {CLIP} {shape} -> {outputs}")


# --------------------------------------------------------------------------- from cfg
def build_shape(cfg: CfgNode, args: argparse.Namespace, model: VideoModel) -> Shape:
    """Return what the exported program takes."""
    crop = args.crop or cfg.DATA.TEST_CROP_SIZE
    return Shape(args.batch, model.clip_frames, crop, getattr(torch, args.input))


def build_facts(cfg: CfgNode, trained: Trained, shape: Shape, variation: bool) -> dict[str, Any]:
    """Return what one must know to use the file, and what it was made from."""
    return {
        "model": cfg.MODEL.NAME,
        "class_names": list(trained.class_names),
        "outputs": [LOGITS, VARIATION] if variation else [LOGITS],
        "dtype": str(shape.dtype).removeprefix("torch."),
        "frames": shape.frames,
        "crop": shape.crop,
        "sampling_rate": cfg.DATA.SAMPLING_RATE,
        "target_fps": cfg.DATA.TARGET_FPS,
        "short_clip": cfg.DATA.SHORT_CLIP,
        "mean": list(cfg.DATA.MEAN),
        "std": list(cfg.DATA.STD),
        "prompts": describe_prompts(trained.model),
        "checkpoint": Path(trained.report.path).name,
        "checkpoint_sha256": trained.report.sha256,
        "config_sha256": hash_config(cfg.dump()),
        "versions": {"vmp": vmp.__version__, "torch": torch.__version__},
    }


# --------------------------------------------------------------------------- the graph
def trace(program: Program, shape: Shape) -> ExportedProgram:
    """Return the graph of a program.

    Raises:
        ValueError: torch can't make one.
    """
    for prompt in program.model.prompts.values():
        assert isinstance(prompt, MotionPrompt)
        prompt.kernel = "eager"  # the fused ones are operators of this package
    sizes = {CLIP: {0: Dim("batch", min=1)}} if shape.batch is None else None
    clip = random_clip(shape, shape.batch or TRACED)
    with quiet(), torch.no_grad():
        try:
            exported = torch.export.export(program, (clip,), dynamic_shapes=sizes)
        except RuntimeError as error:
            raise ValueError(
                f"torch {torch.__version__} can't export this model for a clip {shape}: "
                f"{str(error).strip().splitlines()[0]}"
            ) from error
    for part in exported.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # the paths of this machine
    return exported


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Do without warnings; from then on the exporters log errors alone."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def torch_bytes(exported: ExportedProgram, facts: str) -> bytes:
    """Return the file of `torch.export.save`, with the facts beside the graph."""
    file = io.BytesIO()
    torch.export.save(exported, file, extra_files={FACTS: facts})
    return file.getvalue()


def onnx_bytes(
    exported: ExportedProgram, facts: str, shape: Shape, opset: int | None = None
) -> bytes:
    """Return an ONNX file with the facts in its metadata_props.

    Raises:
        ValueError: torch knows no such opset, or the weights are too large for one file.
    """
    size = sum(value.numel() * value.element_size() for value in exported.state_dict.values())
    if size > LARGEST_ONNX:
        raise ValueError(
            f"the weights are {size / 1e9:.1f} GB, and an .onnx file holds 2 GB; take .pt2"
        )
    names = [LOGITS, VARIATION][: len(exported.graph_signature.user_outputs)]
    sizes = {CLIP: {0: "batch"}} if shape.batch is None else None
    with quiet():
        try:
            made = torch.onnx.export(
                exported,
                input_names=[CLIP],
                output_names=names,
                opset_version=opset,
                dynamic_shapes=sizes,
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # its own errors have no public base
            raise ValueError(
                f"torch {torch.__version__} can't write this model as ONNX of opset "
                f"{opset or 'its choice'}: {str(error).strip().splitlines()[0]}; try another "
                "--opset, or .pt2"
            ) from error
    assert made is not None
    written = made.model.opset_imports[""]
    if opset not in (None, written):
        raise ValueError(f"torch {torch.__version__} writes opset {written}, not --opset {opset}")
    for node in made.model.graph.all_nodes():
        node.metadata_props.clear()  # where in the source it comes from: paths of this machine
    made.model.metadata_props[FACTS] = facts
    data: bytes = made.model_proto.SerializeToString()
    return data


# --------------------------------------------------------------------------- parity
def _numbers(shape: Shape) -> tuple[int, ...]:
    """Return how many clips the batches have that are compared."""
    return COMPARED if shape.batch is None else (shape.batch,)


def random_clip(shape: Shape, batch: int) -> Tensor:
    """Return clips of noise that changes by an eighth from frame to frame, so that V is not 0."""
    random = torch.Generator().manual_seed(batch)
    sizes = (3, shape.frames, shape.crop, shape.crop)
    still = torch.rand((batch, 3, 1, *sizes[2:]), generator=random)
    pixels = still + torch.rand((batch, *sizes), generator=random) / 8
    pixels = pixels / pixels.max()
    return (pixels * 255).to(torch.uint8) if shape.dtype == torch.uint8 else pixels * 4 - 2


def run_program(program: Program, clip: Tensor) -> list[Tensor]:
    """Return what the model itself gives."""
    with torch.inference_mode():
        return _listed(program(clip))


def _listed(out: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def torch_runner(data: bytes) -> tuple[Run, str]:
    """Return what runs a .pt2 file, and its name."""
    module = torch.export.load(io.BytesIO(data)).module()

    def run(clip: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return _listed(module(clip))

    return run, f"torch {torch.__version__}"


def onnx_runner(data: bytes) -> tuple[Run, str]:
    """Return what runs an ONNX file on the CPU, and its name.

    Raises:
        ValueError: onnxruntime refuses it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own errors have no public base
        raise ValueError(
            f"onnxruntime {onnxruntime.__version__} can't run what was made: "
            f"{str(error).strip().splitlines()[0]}; try another --opset, or .pt2"
        ) from error

    def run(clip: Tensor) -> Sequence[Tensor]:
        outputs: list[np.ndarray] = session.run(None, {CLIP: clip.numpy()})
        return [torch.from_numpy(output) for output in outputs]

    return run, f"onnxruntime {onnxruntime.__version__}"


def compare(
    run: Run, clips: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]], what: str
) -> None:
    """Print how far a program is from the model.

    Args:
        run: the program.
        clips: batches of different sizes.
        wanted: what the model gives for each.
        what: is compared, in words.

    Raises:
        ValueError: it is further than TOLERANCE.
    """
    print(f"{what}, compared with the model on random clips:")
    for clip, expected in zip(clips, wanted, strict=True):
        found = run(clip)
        differences = measure(found, expected)
        told = ", ".join(f"{name} {text}" for name, (_, text) in differences.items())
        print(f"  batch of {len(clip)}: largest difference of {told}")
        wrong = [name for name, (share, _) in differences.items() if not share <= TOLERANCE]
        if wrong:
            raise ValueError(
                f"{what}: {' and '.join(wrong)} differ by more than {TOLERANCE:g} of their range "
                "from the model's; nothing was written. Try another --opset, or the other format"
            )


def measure(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Mapping[str, tuple[float, str]]:
    """Return by output (largest difference as a share of its range, the same in words).

    Another shape or type is infinitely far.
    """
    assert len(found) == len(wanted)
    told = {}
    for name, got, expected in zip((LOGITS, VARIATION), found, wanted, strict=False):
        if got.shape != expected.shape or got.dtype != expected.dtype:
            told[name] = (math.inf, f"{tuple(got.shape)} for {tuple(expected.shape)}")
            continue
        off = float((got - expected).abs().max())
        if name == VARIATION:
            told[name] = (off / max(float(expected), LEAST_VARIATION), f"{off:.1e}")
            continue
        span = float(expected.max() - expected.min())
        least = LEAST_RANGE * float(expected.abs().max())
        told[name] = (off / max(span, least, 1e-30), f"{off:.1e} (they span {span:.3g})")
    return told
