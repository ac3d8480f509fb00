"""From a YAML file and overrides to a checked, frozen configuration."""

import ast
import difflib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fvcore.common.config import CfgNode

from vmp.config.check import check_cfg
from vmp.config.defaults import get_cfg
from vmp.share import share_folder

logger = logging.getLogger(__name__)


class _Recipe(CfgNode):  # type: ignore[misc]
    """Takes `configs/...` from where vmp has its recipes, if it is not where the path says."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Any:
        # called for each _BASE_ too, of which fvcore has made a path beside the file that names it
        return super().load_yaml_with_base(_find(filename), allow_unsafe)


def load_cfg(path: str | Path | None, opts: Sequence[str] = ()) -> CfgNode:
    """Return the defaults, overwritten by the file at `path`, then by `opts`; checked and frozen.

    Args:
        path: a YAML file; its `_BASE_`, one name or a list relative to it, is read first. A
            `configs/...` that is not there is taken from the recipes of vmp, and a warning says
            so. None is the defaults alone.
        opts: KEY VALUE KEY VALUE ..., keys with dots (`SOLVER.BASE_LR 0.01`).

    Raises:
        ValueError: not a YAML file, an unsafe tag, an unknown key (the nearest known one is
            named), a value of a wrong type, or values that do not go together.
    """
    cfg = get_cfg()
    if path is not None:
        _merge(cfg, _read(Path(path)), where=str(path))
    _merge(cfg, _parse(opts), where="the command line")
    if not cfg.OUTPUT_DIR:
        cfg.OUTPUT_DIR = _own_folder(path)
    check_cfg(cfg)
    cfg.freeze()
    return cfg


def _own_folder(path: str | Path | None) -> str:
    """Return runs/<folder>/<name> of a config, so that two recipes do not write into one place."""
    if path is None:
        return "runs/default"
    absolute = Path(path).absolute()
    return str(Path("runs", absolute.parent.name, absolute.stem))


def _read(path: Path) -> dict[str, Any]:
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{path}: a config is a .yaml file; Python files are never executed")
    try:
        if path.is_absolute():
            path.stat()  # it means what it says: no other recipe will do
        values = _Recipe.load_yaml_with_base(str(path))
    except FileNotFoundError as error:
        missing = error.filename or path
        raise ValueError(f"{path}: there is no file {missing}; check --cfg and _BASE_") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not plain YAML ({reason})") from error
    except (AssertionError, TypeError) as error:  # fvcore: a key against a section, an empty file
        raise ValueError(f"{path}: its _BASE_ can't be merged ({error})") from error
    except RecursionError:
        raise ValueError(f"{path}: its _BASE_ leads back to itself") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values, this is {values!r}")
    return values


def _find(name: str) -> str:
    """Return `name`, or if there is no such file, the recipe of vmp whose path ends like it.

    That is from `configs/` on: an installed package has them, whatever the current folder.
    """
    parts = Path(name).parts
    if Path(name).exists() or "configs" not in parts:
        return name
    ours = share_folder().joinpath(*parts[len(parts) - 1 - parts[::-1].index("configs") :])
    if not ours.is_file():
        return name
    logger.warning("there is no %s: %s is read", name, ours)
    return str(ours)


def _parse(opts: Sequence[str]) -> dict[str, Any]:
    if len(opts) % 2:
        raise ValueError(f"overrides are KEY VALUE pairs; {opts[-1]!r} has no partner")
    values: dict[str, Any] = {}
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        *sections, leaf = key.split(".")
        node = values
        for section in sections:
            node = node.setdefault(section, {})
            if not isinstance(node, dict):
                raise ValueError(f"the command line: {key}: {section} was given a value before")
        node[leaf] = text
    return values


def _merge(
    cfg: CfgNode,
    values: dict[str, Any],
    where: str,
    prefix: str = "",
    defaults: CfgNode | None = None,
) -> None:
    """Set the keys of `cfg`, each as the type of its default, whatever it holds by now."""
    defaults = get_cfg() if defaults is None else defaults
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            raise ValueError(f"{where}: there is no key {name}{_nearest(name)}")
        if isinstance(cfg[key], CfgNode):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name} is a section of keys, {value!r} was given")
            _merge(cfg[key], value, where, f"{name}.", defaults[key])
        else:
            cfg[key] = _coerce(value, defaults[key], f"{where}: {name}")


def _nearest(name: str) -> str:
    known = list(_names(get_cfg()))
    leaf = name.rsplit(".", 1)[-1]
    found = difflib.get_close_matches(name, known, n=1) or [
        other for other in known if other.rsplit(".", 1)[-1] == leaf
    ]
    return f"; did you mean {found[0]}?" if found else ""


def _names(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _names(value, prefix=f"{prefix}{key}.")


def _coerce(value: Any, default: Any, name: str) -> Any:
    """Return `value` as the type of `default`; text (of the command line) is parsed for it."""
    if isinstance(default, str):
        if not isinstance(value, str):
            raise ValueError(f"{name} wants text, {value!r} was given; put it in quotes")
        return value
    if isinstance(value, str):
        value = _literal(value)
    if isinstance(default, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} wants a list like {default}, {value!r} was given")
        return [_coerce(item, default[0], name) for item in value]
    if default is None and value is None:
        return None
    wanted = float if default is None else type(default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        kind = {bool: "True or False", int: "a whole number", float: "a number"}[wanted]
        raise ValueError(f"{name} wants {kind}, {value!r} was given")
    return value


def _literal(text: str) -> Any:
    """Return what `text` says: YAML's true and 1e-4, which its parsers leave as text, too."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
