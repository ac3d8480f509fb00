"""What `tools/convert.py` does: read weights, rename them, write them, and read them again."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vmp
from vmp.config import load_cfg
from vmp.models import build_model
from vmp.models.convert import Named, rename_to_ours, rename_to_theirs
from vmp.models.key_maps import detect_layout, listed
from vmp.utils.files import write_atomically
from vmp.utils.weights_file import WeightsFile, read_weights, write_safetensors

# What a checkpoint of ours says of its training, and a converted file goes on saying.
KEPT_FACTS = ("epoch", "step", "config", "recipe")
ORIGIN = ("source", "source_file", "source_sha256")


def convert(args: argparse.Namespace) -> None:
    """Read, rename, write, and read again to compare.

    Args:
        args: of the command line.

    Raises:
        ValueError: IN is not what it should be, or does not fit the recipe or the names asked for.
    """
    expected = {} if args.cfg is None else build_state(args.cfg, args.opts)
    file = read_weights(args.source, args.sha256)
    try:
        named = rename_to_ours(file, detect_layout(expected) if expected else "")
        if expected:
            check_state(named.state, expected)
        state = named.state
        if args.to != "vmp":
            state = rename_to_theirs(state, args.to, named.layout, drop_prompt=args.drop_prompt)
    except ValueError as error:
        raise ValueError(f"{args.source}: {error}") from error
    write(args.out, state, args.to, facts(args, file, named))
    written = read_weights(args.out)
    assert same(written.tensors, state), f"{args.out} is not what was to be written"
    print(f"{args.source}: {named.source}'s names, {named.layout}, SHA-256 {file.sha256}")
    size = args.out.stat().st_size / 1e6
    print(f"{args.out}: {args.to}'s names, {len(state)} entries, {size:.1f} MB, every bit the same")


def build_state(path: str, opts: list[str]) -> dict[str, Tensor]:
    """Return the state dict of a recipe's model, shapes only."""
    cfg = load_cfg(path, opts)
    with torch.device("meta"):
        return build_model(cfg).state_dict()


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `state` has the names and shapes of the recipe's model."""
    wrong = sorted(state.keys() ^ expected.keys())
    wrong += [n for n in state.keys() & expected.keys() if state[n].shape != expected[n].shape]
    if wrong:
        raise ValueError(
            f"{len(wrong)} entries differ from the recipe's ({listed(wrong)}): name its own, with "
            "its MODEL.NUM_CLASSES, PROMPT.ENABLE and X3D.SHORTCUT_NORM"
        )


def facts(args: argparse.Namespace, file: WeightsFile, named: Named) -> dict[str, str]:
    """Return what OUT says of itself."""
    kept = {name: str(file.facts[name]) for name in KEPT_FACTS if name in file.facts}
    if args.cfg:
        kept["recipe"] = Path(args.cfg).stem
    origin = dict(zip(ORIGIN, (named.source, file.path.name, file.sha256), strict=True))
    if named.source == "vmp":  # converted before: where it first came from
        origin |= {name: str(file.facts[name]) for name in ORIGIN if name in file.facts}
    written = {"names": args.to, "network": named.layout, "written_by": f"vmp {vmp.__version__}"}
    return kept | origin | written


def write(out: Path, state: dict[str, Tensor], to: str, facts: dict[str, str]) -> None:
    """Write the weights and their facts, whole or not at all."""
    if out.suffix == ".safetensors":
        write_safetensors(out, state, facts)
        return
    # the others take an epoch at the top for one to go on from
    content: dict[str, Any] = {"model_state": state, "converted": facts}
    if to == "vmp":
        content = {"model": state, **facts}
    write_atomically(out, lambda file: torch.save(content, file))


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether names, types, shapes and bits agree."""
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape) == (value.dtype, value.shape)
        and torch.equal(bits(one[name]), bits(value))
        for name, value in other.items()
    )


def bits(value: Tensor) -> Tensor:
    """Return the bytes of a tensor: a NaN is not equal to itself, and -0.0 is equal to 0.0."""
    return value.detach().contiguous().view(-1).view(torch.uint8)
