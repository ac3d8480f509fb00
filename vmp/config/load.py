"""From a YAML file and overrides to a checked, frozen configuration."""

import ast
import difflib
import logging
import os
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from fvcore.common.config import CfgNode

from vmp.config.check import check_cfg
from vmp.config.defaults import get_cfg
from vmp.share import share_folder

logger = logging.getLogger(__name__)

BASE = "_BASE_"  # fvcore's key for the files that a file builds on
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
SHOWN = 60  # characters of what should have been a mapping


class _Recipe(CfgNode):  # type: ignore[misc]
    """Takes `configs/...` from where vmp has its recipes, if it is not where the path says.

    Both methods are called for each _BASE_ too, of which fvcore has made a path beside the file
    that names it.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Any:
        return super().load_yaml_with_base(find_recipe(filename), allow_unsafe)

    @classmethod
    def _open_cfg(cls, filename: str) -> IO[str]:
        file = Path(filename)
        _check_file(file)
        return file.open(encoding="utf-8")


def load_cfg(path: str | Path | None, opts: Sequence[str] = ()) -> CfgNode:
    """Return the defaults, overwritten by the file at `path`, then by `opts`; checked and frozen.

    Args:
        path: a YAML file; its `_BASE_`, one name or a list relative to it, is read first. A
            `configs/...` that is not there is taken from the recipes of vmp, and a warning says
            so. None is the defaults alone.
        opts: KEY VALUE KEY VALUE ..., keys with dots (`SOLVER.BASE_LR 0.01`).

    Raises:
        ValueError: not a YAML file, an unsafe tag, a key given twice in one file, an unknown key
            (the nearest known one is named), a value of a wrong type, or values that do not go
            together.
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


def _read(path: Path) -> Any:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a .yaml file in it")
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{path}: a config is a .yaml file; Python files are never executed")
    try:
        if path.is_absolute():
            path.stat()  # it means what it says: no other recipe will do
        return _Recipe.load_yaml_with_base(str(path))
    except OSError as error:
        raise ValueError(f"{path}: {_unread(error, path)}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: {_not_yaml(error)}") from error
    except AssertionError as error:  # fvcore: a key against a section
        raise ValueError(f"{path}: its _BASE_ can't be merged ({error})") from error
    except RecursionError:
        raise ValueError(f"{path}: its _BASE_ leads back to itself") from None
    except ValueError as error:  # of `_check_file`, or of a value: a 13th month
        told = str(error)
        raise ValueError(told if told.startswith(f"{path}:") else f"{path}: {told}") from error


def _unread(error: OSError, path: Path) -> str:
    file = error.filename or path
    if isinstance(error, FileNotFoundError):
        return f"there is no file {file}; check --cfg and _BASE_"
    if isinstance(error, IsADirectoryError):
        return f"its _BASE_ {file} is a folder; name a .yaml file in it"
    return f"{file} can't be read ({error.strerror})"


def _check_file(file: Path) -> None:
    """Refuse what fvcore takes silently, or ends with words that nobody understands.

    Raises:
        ValueError: `file` is no text, no YAML, empty, or no mapping; its _BASE_ is no name; a key
            is there twice.
        OSError: it can't be read.
    """
    try:
        with file.open(encoding="utf-8") as stream:
            root = yaml.compose(stream, yaml.SafeLoader)  # nodes; no value is made of them
    except (UnicodeDecodeError, yaml.reader.ReaderError) as error:
        raise ValueError(f"{file}: not a text file in UTF-8 ({error.reason})") from error
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{file}: {_not_yaml(error)}{_tab_hint(error, file)}") from error
    if root is None or root.tag.endswith(":null"):
        raise ValueError(f"{file}: it is empty; a config is a mapping of keys to values")
    if not isinstance(root, yaml.MappingNode):
        shown = root.value if isinstance(root, yaml.ScalarNode) else "a list"
        shown = textwrap.shorten(shown, SHOWN, placeholder=" ...")
        raise ValueError(f"{file}: a config is a mapping of keys to values, this is {shown!r}")
    _check_base(root, file)
    _check_keys(root, file, set())


def _not_yaml(error: yaml.YAMLError) -> str:
    return f"not plain YAML ({' '.join(str(error).split())})"


def _tab_hint(error: yaml.MarkedYAMLError, file: Path) -> str:
    number = error.problem_mark.line if error.problem_mark else 0
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    line = "".join(lines[number : number + 1])  # none, if it is the end that is wrong
    indent = line[: len(line) - len(line.lstrip())]
    return "; indent with blanks, not tabs" if "\t" in indent else ""


def _check_base(root: yaml.MappingNode, file: Path) -> None:
    for key, value in root.value:
        if key.value != BASE:
            continue
        names = value.value if isinstance(value, yaml.SequenceNode) else [value]
        if any(name.tag != TEXT for name in names):
            raise ValueError(
                f"{file}: line {key.start_mark.line + 1}: _BASE_ is the name of a .yaml file, or a "
                "list of names"
            )


def _check_keys(node: yaml.Node, file: Path, done: set[int], prefix: str = "") -> None:
    """Refuse a key that a mapping has twice, of which YAML would keep the last.

    Args:
        node: a mapping, or what may hold some.
        file: it is of.
        done: ids of nodes that were looked at; an alias may lead back to one.
        prefix: sections above, each with a dot.
    """
    if id(node) in done:
        return
    done.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, file, done, prefix)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.tag != MERGE:
            if key.value in first:
                raise ValueError(
                    f"{file}: line {line}: {prefix}{key.value} is in line {first[key.value]} "
                    "already; put its values together, or keep one"
                )
            first[key.value] = line
        _check_keys(value, file, done, f"{prefix}{key.value}.")


def find_recipe(name: str) -> str:
    """Return `name`, or if there is no such file, the recipe of vmp whose path ends like it.

    That is from `configs/` on: an installed package has them, whatever the current folder. A
    warning says which is taken.
    """
    parts = Path(name).parts
    if Path(name).exists() or "configs" not in parts:
        return name
    ours = share_folder().joinpath(*parts[len(parts) - 1 - parts[::-1].index("configs") :])
    if not ours.is_file():
        return name
    logger.warning("there is no %s: %s is read", name, ours)
    return str(ours)


def part_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files and the overrides among words of a command line that has files first.

    The overrides begin with the first word that names a key or a section, and no file.
    """
    known = get_cfg()
    for place, word in enumerate(words):
        if word.partition(".")[0] in known and not os.path.exists(word):
            return list(words[:place]), list(words[place:])
    return list(words), []


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
