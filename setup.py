"""Puts tools/, configs/ and datasets/ into the wheel; every other fact is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# What `python -m vmp` and configs/... need where there is no checkout: vmp/share.py finds it.
SHARED = ("tools", "configs", "datasets", "scripts/slurm/train.sbatch", "scripts/pbs/train.pbs")


class BuildWithShare(build_py):
    """Builds the package, with the folders beside it as vmp/_share."""

    def run(self) -> None:
        """Copy them last; an editable install uses those of the checkout."""
        super().run()
        if self.editable_mode:
            return
        share = Path(self.build_lib, "vmp", "_share")
        shutil.rmtree(share, ignore_errors=True)  # what an earlier build left is in no wheel
        for name in SHARED:
            target = share / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if Path(name).is_file():
                shutil.copy(name, target)
            else:
                shutil.copytree(name, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))


setup(cmdclass={"build_py": BuildWithShare})
