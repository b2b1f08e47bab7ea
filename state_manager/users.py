"""Acting as another user, for a gunicorn that is started as root and told to run its workers as somebody else.

The workers' user must own the manager and its directory: nobody else is let in, root included.
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable
from pathlib import Path

from state_manager.errors import StateError


def run_as(uid: int, gid: int, action: Callable[[], int]) -> int:
    """Return ``action()``, done as this user: in a forked child, unless this process is that user.

    What the action starts outlives the child. Raises StateError, whatever the child's error was.
    """
    if uid == os.geteuid():
        return action()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, _answer(uid, gid, action).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        word, _, text = pipe.read().partition(" ")
    with contextlib.suppress(ChildProcessError):  # gunicorn's master may have waited for it
        os.waitpid(child, 0)
    if word != "done":
        raise StateError(text or f"acting as uid {uid} failed")
    return int(text)


def _answer(uid: int, gid: int, action: Callable[[], int]) -> str:
    try:
        try:
            os.initgroups(pwd.getpwuid(uid).pw_name, gid)
        except KeyError:  # a uid without a name, as in many containers
            os.setgroups([gid])
        os.setgid(gid)
        os.setuid(uid)
        return f"done {action()}"
    except Exception as error:
        return f"error {error}"


def make_directory_for(uid: int, gid: int, directory: Path) -> None:
    """Make a missing state directory for the user, who often may not write where the project is. Raises StateError."""
    if uid == os.geteuid():
        return
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(0o700)
            os.chown(directory, uid, gid, follow_symlinks=False)
    except OSError as error:
        raise StateError(f"cannot make {directory} for uid {uid}: {error.strerror}") from error
