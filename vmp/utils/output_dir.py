"""The folder of a run, and what to say where it can't be one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def open_output_dir(folder: str | Path) -> Iterator[Path]:
    """Make the folder if needed and yield it, for its first files to be opened.

    Raises:
        ValueError: OUTPUT_DIR is a file; or it, or one of those files, can't be made or written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except OSError as error:
        # Path.exists raises where a folder above may not be entered
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise ValueError(f"OUTPUT_DIR {folder} is a file; name a folder") from error
        raise ValueError(
            f"OUTPUT_DIR {folder} can't be made or written ({error.strerror or error}); name "
            "another folder"
        ) from error
