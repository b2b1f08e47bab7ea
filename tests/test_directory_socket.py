"""The socket of a state directory: binding, connecting, and who is at the other end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from state_manager import directory as module
from state_manager.directory import StateDirectory, peer_pid, peer_uid
from state_manager.errors import AuthenticationFailed, StateError, Unavailable


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDirectory]:
    with contextlib.closing(StateDirectory.open(tmp_path / "state", create=True)) as state:
        yield state


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def exchange(listener: socket.socket, client: socket.socket) -> None:
    """Show that the two ends belong together."""
    listener.setblocking(True)
    server, _ = listener.accept()
    with server:
        client.sendall(b"hello")
        assert server.recv(5) == b"hello"


def test_bind_replaces_the_socket_of_a_killed_manager(state: StateDirectory) -> None:
    state.bind().close()
    with state.bind() as listener, state.connect(1.0) as client:
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        assert not client.get_inheritable()
        assert client.gettimeout() == 1.0
        assert mode(state.path / "socket") == 0o600
        exchange(listener, client)
    state.unlink_socket()
    state.unlink_socket()
    assert not (state.path / "socket").exists()


def test_the_socket_is_closed_to_others_whatever_the_umask(state: StateDirectory) -> None:
    before = os.umask(0o000)
    try:
        state.bind().close()
    finally:
        os.umask(before)
    assert mode(state.path / "socket") == 0o600


@pytest.mark.parametrize("length", [1, 80, 200])
@pytest.mark.parametrize("proc", ["/proc/self/fd", "/missing"])
def test_a_path_of_any_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, proc: str) -> None:
    monkeypatch.setattr(module, "_PROC_DESCRIPTORS", proc)
    with contextlib.closing(StateDirectory.open(tmp_path / ("d" * length) / ("é" * 9), create=True)) as state:
        with state.bind() as listener, state.connect(1.0) as client:
            exchange(listener, client)
        with state._short_name() as name:
            assert len(os.fsencode(name)) <= 103
            assert os.path.samefile(os.path.dirname(name), state.path)
            helper = Path(name).parent.parent
            if name.startswith("/tmp/state-"):
                assert mode(helper) == 0o700
        assert not name.startswith("/tmp/state-") or not helper.exists()


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_hold_a_socket(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            raise OSError(error, os.strerror(error))

    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(StateError, match=f"the file system of {state.path} cannot hold a Unix socket .*--dir"):
        state.bind()


def test_a_directory_in_place_of_the_socket(state: StateDirectory) -> None:
    (state.path / "socket").mkdir()
    with pytest.raises(StateError, match=f"cannot use {state.path}/socket"):
        state.bind()


def test_another_error_of_bind_is_named(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateDirectory, "unlink_socket", lambda self: None)
    with state.bind(), pytest.raises(StateError, match=f"cannot use {state.path}/socket: Address already in use"):
        state.bind()


@pytest.mark.parametrize("found", ["nothing", "a dead socket", "a file", "no directory"])
def test_a_client_that_finds_nobody_is_told_what_to_type(state: StateDirectory, found: str) -> None:
    if found == "a dead socket":
        state.bind().close()
    if found == "a file":
        (state.path / "socket").touch(0o600)
    if found == "no directory":
        shutil.rmtree(state.path)
    with pytest.raises(Unavailable) as caught:
        state.connect(1.0)
    assert str(caught.value).startswith(f"no manager runs in {state.path}: start the app with ")


def full(state: StateDirectory) -> tuple[socket.socket, list[socket.socket]]:
    """Return a listener that does not accept, and the connections that fill its backlog."""
    listener = state.bind()
    listener.listen(0)
    waiting = []
    with contextlib.suppress(Unavailable):
        while True:
            waiting.append(state.connect(0.0))
    return listener, waiting


def test_a_manager_that_accepts_nobody_is_unavailable_after_the_timeout(state: StateDirectory) -> None:
    listener, waiting = full(state)
    begin = time.monotonic()
    with pytest.raises(Unavailable, match=f"the manager of {state.path} takes no connections; is it stopped"):
        state.connect(0.05)
    assert time.monotonic() - begin >= 0.05
    for each in (listener, *waiting):
        each.close()


@pytest.mark.parametrize("timeout", [None, 10.0])
def test_a_full_backlog_is_waited_for(state: StateDirectory, timeout: float | None) -> None:
    listener, waiting = full(state)
    client: list[socket.socket] = []
    late = threading.Thread(target=lambda: client.append(state.connect(timeout)))
    late.start()
    listener.setblocking(True)
    served = [listener.accept()[0] for _ in range(len(waiting) + 1)]  # the last of them is the late one
    late.join()
    assert [each.gettimeout() for each in client] == [timeout]
    for each in (listener, *waiting, *served, *client):
        each.close()


def test_what_a_client_cannot_help_is_unavailable(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", fails)
    with pytest.raises(Unavailable, match=f"cannot reach the manager of {state.path}: Too many open files"):
        state.connect(1.0)


def test_another_users_manager_is_refused(state: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    with state.bind():
        monkeypatch.setattr(module, "peer_uid", lambda connection: os.geteuid() + 1)
        with pytest.raises(AuthenticationFailed, match=f"runs as uid {os.geteuid() + 1} and this process as uid"):
            state.connect(1.0)


def test_a_directory_that_was_made_again_is_noticed(state: StateDirectory) -> None:
    old_key = state.key(create=True)
    number = state.fd
    with state.bind() as old:
        shutil.rmtree(state.path)
        with contextlib.closing(StateDirectory.open(state.path, create=True)) as other:
            key = other.key(create=True)
            with other.bind() as new, state.connect(1.0) as client:
                exchange(new, client)
                assert state.key(create=False) == key != old_key
                assert state.fd == number
                assert not os.get_inheritable(number)
                with pytest.raises(BlockingIOError):
                    old.accept()
                state.connect(1.0).close()
                assert state.fd == number


def test_a_directory_that_was_made_again_is_checked_again(state: StateDirectory) -> None:
    shutil.rmtree(state.path)
    state.path.mkdir()
    state.path.chmod(0o755)
    with pytest.raises(StateError, match=f"chmod 700 {state.path}"):
        state.connect(1.0)


def test_a_descriptor_that_a_daemonizer_closed_is_not_taken_from_its_new_owner(state: StateDirectory) -> None:
    with state.bind() as listener:
        number = state.fd
        os.close(number)
        reader, writer = os.pipe()
        assert number in (reader, writer)
        with state.connect(1.0) as client:
            exchange(listener, client)
        os.write(writer, b"still a pipe")
        assert os.read(reader, 99) == b"still a pipe"
        os.close(state.fd)
        os.dup2(reader, state.fd)
        number = state.fd
        state.close()
        os.fstat(number)  # close() left it alone, too
        for fd in (reader, writer, number):
            os.close(fd)


def test_a_closed_directory_opens_itself_to_connect(state: StateDirectory) -> None:
    with state.bind() as listener:
        state.close()
        with state.connect(1.0) as client:
            exchange(listener, client)


def test_a_forked_child_connects_through_the_inherited_descriptor(state: StateDirectory) -> None:
    with state.bind() as listener:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                state.connect(1.0).sendall(b"from the child")
            os._exit(0)
        listener.setblocking(True)
        server, _ = listener.accept()
        with server:
            assert server.recv(99) == b"from the child"
            assert peer_pid(server) == child
        os.waitpid(child, 0)


# Who is at the other end


class Option:
    """Answers ``getsockopt`` from a table."""

    def __init__(self, answers: dict[tuple[int, int], bytes]) -> None:
        self.answers = answers

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        answer = self.answers.get((level, option))
        if answer is None:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        assert len(answer) <= size
        return answer


def test_the_other_end_is_known(state: StateDirectory) -> None:
    with state.bind(), state.connect(1.0) as client:
        assert peer_uid(client) == os.geteuid()
        assert peer_pid(client) == os.getpid()


def test_a_pid_of_another_namespace_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "SO_PEERCRED", 17, raising=False)
    other: Any = Option({(socket.SOL_SOCKET, 17): struct.pack("iII", 0, 1000, 1000)})
    assert (peer_uid(other), peer_pid(other)) == (1000, None)


def test_the_other_end_on_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    monkeypatch.setattr(socket, "LOCAL_PEERCRED", 1, raising=False)
    credentials = struct.pack("IIh2x16I", 0, 501, 1, *[20] * 16)
    other: Any = Option({(0, 1): credentials, (0, 2): struct.pack("i", 4321)})
    assert (peer_uid(other), peer_pid(other)) == (501, 4321)
    gone: Any = Option({})
    assert (peer_uid(gone), peer_pid(gone)) == (None, None)


def test_where_the_platform_does_not_tell_modes_and_key_must_do(
    state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(socket, "SO_PEERCRED", raising=False)
    monkeypatch.delattr(socket, "LOCAL_PEERCRED", raising=False)
    with state.bind() as listener, state.connect(1.0) as client:
        assert (peer_uid(client), peer_pid(client)) == (None, None)
        exchange(listener, client)
