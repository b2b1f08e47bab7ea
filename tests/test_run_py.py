"""run.py where it cannot run: any Python can read it, and is told in one line what to do."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).parents[1] / "run.py"
HOW = "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/python run.py"


def said(*arguments: str) -> str:
    failed = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env={}, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = failed.stderr.splitlines()
    return line


def test_an_old_python_can_read_it() -> None:
    ast.parse(RUN.read_text(), feature_version=(3, 4))


def test_an_old_python_is_told_to_be_another() -> None:
    program = f"import sys; sys.version_info = (3, 10, 9); sys.version = '3.10.9 (x)'; exec(open({str(RUN)!r}).read())"
    program = program.replace("exec(", f"__file__ = {str(RUN)!r}; exec(")
    how = HOW.replace("python3 ", "python3.11 ")
    assert said("-c", program) == f"run.py needs Python 3.11 or later, and this is 3.10.9. With one: {how}"


def test_what_is_not_installed_is_named() -> None:
    assert said("-S", str(RUN)) == f"run.py: No module named 'flask'. To install what it needs: {HOW}"
