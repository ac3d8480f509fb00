"""The tools of vmp, by name: `python -m vmp TOOL ...`, or `vmp TOOL ...`.

TOOL --help explains one. Names like configs/MotionShapes/X3D_XS.yaml are found from any folder.
"""

import ast
import difflib
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from vmp import __version__
from vmp.share import share_folder
from vmp.utils.cli import take_debug

# How the file of a program ends, unlike those that programs import.
ENTRY = 'if __name__ == "__main__":'


def programs() -> dict[str, Path]:
    """Return the files of all programs by name, those of tools/ first.

    `prepare_hmdb51` is datasets/hmdb51/prepare.py, `pack` is datasets/pack.py.
    """
    share = share_folder()
    found = {path.stem: path for path in sorted((share / "tools").glob("*.py")) if _starts(path)}
    found |= {path.stem: path for path in sorted((share / "datasets").glob("*.py"))}
    for path in sorted((share / "datasets").glob("*/prepare.py")):
        found[f"prepare_{path.parent.name}"] = path
    return found


def _starts(path: Path) -> bool:
    return ENTRY in path.read_text(encoding="utf-8")


def describe() -> str:
    """Return what `python -m vmp` says: how to start a program, and a line for each."""
    lines = [f"vmp {__version__}: {(__doc__ or '').strip()}", ""]
    for name, path in programs().items():
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        first = text.partition("\n\n")[0]
        lines.append(f"  {name:<22} {_sentence(' '.join(first.split()))}")
    return "\n".join(lines)


def _sentence(text: str) -> str:
    """Return the first of what `text` says, without the command behind its colon."""
    return text.partition(". ")[0].partition(": `")[0].removesuffix(".")


def find(name: str) -> Path:
    """Return the file of a program.

    Raises:
        ValueError: there is none of this name; the nearest is named.
    """
    known = programs()
    if not known:
        raise ValueError(f"there are no tools in {share_folder()}; install vmp again")
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "`python -m vmp` lists them"
        raise ValueError(f"there is no tool {name!r}; {hint}")
    return known[name]


def start(path: Path, words: Sequence[str]) -> None:
    """Run a program as `python path words` would: it imports the files beside it."""
    sys.argv = [str(path), *words]
    if not getattr(
        sys.flags, "safe_path", False
    ):  # the folder of `python -m`, or of the script that started this
        del sys.path[0]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")


def main() -> None:
    """Run the program that the first word names; a script vmp-run-net is `vmp run_net`."""
    take_debug()
    words = sys.argv[1:]
    _, dash, tool = Path(sys.argv[0]).name.partition("vmp-")
    if dash:
        words = [tool.replace("-", "_"), *words]
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(describe() + "\n")
        return
    if words[0] == "--version":
        sys.stdout.write(f"vmp {__version__}\n")
        return
    try:
        path = find(words[0])
    except ValueError as error:
        sys.exit(f"error: {error}")
    start(path, words[1:])


if __name__ == "__main__":
    main()
