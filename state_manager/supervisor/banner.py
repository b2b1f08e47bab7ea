"""What a person reads: the few lines at the start, and the commands to type next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from state_manager.settings import state_directory


def text(configuration: Mapping[str, Any], urls: Sequence[str], manager: str, directory: Path) -> str:
    """Return the banner: where the app is, how many workers it has, which manager it uses, and how to look into it."""
    workers = f"{configuration['workers']} {configuration['worker_class']} workers"
    if configuration["worker_class"] == "gthread":
        workers += f" of {configuration['threads']} threads"
    rows = (
        (configuration["app"], f"{' '.join(urls)}, {workers}"),
        ("manager", f"{manager}, directory {directory}"),
        ("inspect", command("stats", directory)),
    )
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {value}" for name, value in rows)


def command(name: str, directory: Path) -> str:
    """Return a command line that works when it is pasted here, whether or not a virtual environment is active."""
    script = Path(sys.executable).with_name("state-manager")
    if shutil.which("state-manager") == str(script):
        words = ["state-manager"]
    elif script.exists():
        words = [_short(script)]
    else:
        words = [_short(Path(sys.executable)), "-m", "state_manager"]
    words.append(name)
    if directory != state_directory():
        words += ["--dir", _short(directory)]
    return shlex.join(words)


def _short(path: Path) -> str:
    """Return the path from here if that is a way down, else from the root."""
    cwd = Path(os.getcwd())
    return f"{path.relative_to(cwd)}" if path.is_relative_to(cwd) else str(path)
