"""Checks a built wheel, and copies this checkout into the current directory without the package's source.

Tests that run there can only find the wheel. `tox -e dist` runs this where the wheel is installed; pytest does not.
"""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns("state_manager", ".*", "__pycache__", "build", "dist")


def check_contents(wheel: Path) -> None:
    """The wheel holds the package, whole, and nothing else: a top-level ``web`` would shadow the user's own."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {
        path.relative_to(REPOSITORY).as_posix()
        for path in (REPOSITORY / "state_manager").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "state_manager/py.typed" in packed
    assert packed == source, f"only in the wheel: {packed - source}; missing in it: {source - packed}"


def check_installation() -> None:
    """``import state_manager``, started from the checkout, finds the installed wheel, and it knows its version."""
    sys.path[0] = ""  # the current directory, as `python -m` has it, in place of tests/
    import state_manager
    from state_manager import settings

    assert state_manager.__file__ is not None
    assert Path(state_manager.__file__).is_relative_to(sys.prefix), state_manager.__file__
    assert version("flask-state-manager") == settings.VERSION


def main() -> None:
    check_contents(Path(os.environ["TOX_PACKAGE"]))
    shutil.copytree(REPOSITORY, Path.cwd(), ignore=NOT_COPIED, dirs_exist_ok=True)
    check_installation()


if __name__ == "__main__":
    main()
