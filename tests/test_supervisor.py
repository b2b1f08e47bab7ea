"""The parts of the supervisor, without a manager and without gunicorn: those are in tests/processes."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from state_manager import supervisor
from state_manager.supervisor import arguments, banner, children, listeners
from state_manager.supervisor.arguments import Plan, find_app
from state_manager.supervisor.listeners import CannotListen, InUse, Listeners, Wanted, holder_of
from state_manager.supervisor.loop import Loop
from state_manager.supervisor.starting import LONGEST_DELAY, STEADY, Backoff, Gunicorn
from state_manager.supervisor.supervisor import Supervisor

SECONDS = 10.0


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Arguments


def test_only_the_first_double_dash_divides() -> None:
    assert supervisor.split(["a", "--", "b", "--", "c"]) == (["a"], ["b", "--", "c"])
    assert supervisor.split(["a"]) == (["a"], [])


def test_a_plan_survives_its_command_line() -> None:
    plan = Plan(
        prog="state-manager run",
        app="a:b('c d')",
        default_app="e:f",
        path="/some where",
        flags=["--bind", "unix:/x", "--bind", "[::1]:1", "--workers", "2", "--threads", "3", "--worker-class", "sync"],
        rest=["--", "-c", "x"],
    )
    assert arguments.parse_command_line(arguments.command_line(plan, 7)) == (plan, 7)
    empty = Plan(prog="p", app=None, default_app=None, path=None, flags=[], rest=[])
    assert arguments.parse_command_line(arguments.command_line(empty, 8)) == (empty, 8)


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", ""])
def test_a_number_of_workers_is_above_zero(number: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        supervisor.main([f"--workers={number}"], default_app="web:app")
    assert f"{number!r} is not a whole number above zero" in capsys.readouterr().err


def test_an_address_that_is_not_a_directory_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STATE_MANAGER_ADDRESS", "memory://")
    assert supervisor.main([], default_app="web:app", prog="run.py") == 2
    assert capsys.readouterr().err == "run.py: memory:// is not shared by the workers of gunicorn: give --dir DIR\n"


def test_a_command_line_may_have_a_dir_of_its_own() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dir")
    supervisor.add_arguments(parser, directory=False)
    assert parser.parse_args(["--dir", "x", "a:b"]).module == "a:b"


# The app that is meant


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("app = Flask(__name__)", "app"),
        ("application = Flask(__name__)", "application"),
        ("def create_app(): ...", "create_app()"),
        ("def make_app(): ...", "make_app()"),
        ("app: Flask = create_app()", "app"),
        ("from shop import create_app", "create_app()"),
        ("from shop import site as app", "app"),
        ("def app(environ, start_response): ...", "app"),
        ("import app.views\napp = 1\ndef create_app(): ...", "app"),
    ],
)
@pytest.mark.parametrize("file", ["wsgi.py", "app.py"])
def test_an_app_is_found_by_its_name(tmp_path: Path, source: str, name: str, file: str) -> None:
    (tmp_path / file).write_text(source)
    assert find_app(None, tmp_path) == (f"{file[:-3]}:{name}", str(tmp_path))


@pytest.mark.parametrize("source", ["", "x = 1", "if True:\n    app = 1", "this is not Python", "\0"])
def test_no_app_is_found_where_none_is_seen(tmp_path: Path, source: str) -> None:
    (tmp_path / "app.py").write_text(source)
    assert find_app(None, tmp_path) is None


def test_wsgi_py_comes_first(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text("app = 1")
    (tmp_path / "wsgi.py").write_text("app = 1")
    assert find_app(None, tmp_path) == ("wsgi:app", str(tmp_path))


@pytest.mark.parametrize(
    ("flask_app", "found", "below"),
    [
        ("shop", "shop:app", ""),
        ("shop.py", "shop:app", ""),
        ("shop:other", "shop:other", ""),
        ("shop:build", "shop:build()", ""),
        ("shop:build('x')", "shop:build('x')", ""),
        ("src/kiosk.py", "kiosk:create_app()", "src"),
        ("src/kiosk.py:create_app", "kiosk:create_app()", "src"),
        ("package", "package:app", ""),
        ("package.inner", "package.inner:app", ""),
        ("installed.elsewhere:app", "installed.elsewhere:app", ""),
    ],
)
def test_flask_app_means_what_it_means_to_flask(tmp_path: Path, flask_app: str, found: str, below: str) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "src").mkdir()
    (tmp_path / "shop.py").write_text("app = other = 1\ndef build(x=1): ...")
    (tmp_path / "src/kiosk.py").write_text("def create_app(): ...")
    (tmp_path / "package/__init__.py").write_text("app = 1")
    (tmp_path / "package/inner.py").write_text("app = 1")
    assert find_app(flask_app, tmp_path) == (found, str(tmp_path / below))


@pytest.mark.parametrize("flask_app", ["nowhere", "empty", "empty.py"])
def test_flask_app_without_an_app_is_told(tmp_path: Path, flask_app: str) -> None:
    (tmp_path / "empty.py").touch()
    with pytest.raises(ValueError, match=f"FLASK_APP is '{flask_app}'"):
        find_app(flask_app, tmp_path)


# Backoff


def test_the_first_restart_is_at_once_and_short_lives_wait_longer_and_longer() -> None:
    backoff = Backoff()
    assert [backoff.delay(0) for _ in range(5)] == [0, 0.5, 1, 2, 4]
    assert max(backoff.delay(0) for _ in range(99)) == LONGEST_DELAY
    assert backoff.delay(STEADY) == 0
    assert backoff.delay(0) == 0


def test_a_gunicorn_whose_last_words_are_that_it_has_served_is_not_hopeless() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    plan = Plan(prog="p", app=None, default_app=None, path=None, flags=[], rest=[])
    subject = Supervisor(Path("/nowhere"), plan)
    with child(process_group=0) as process, theirs:
        gunicorn = Gunicorn(process.pid, ours)
        subject._gunicorn = gunicorn
        subject._loop.read(ours.fileno(), lambda: None)
        theirs.send(b'{"event": "loaded"}\n')
        process.kill()
        process.wait()
        subject._ended(process.pid, 3)
    assert gunicorn.loaded
    assert not subject._done


# The loop


@pytest.fixture
def signals() -> Iterator[list[int]]:
    """Two signals that a loop may have; it leaves them ignored, so they are given back."""
    numbers = [signal.SIGUSR1, signal.SIGUSR2]
    handlers = [signal.getsignal(number) for number in numbers]
    yield [int(number) for number in numbers]
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_signals_arrive_in_the_loop_and_never_inside_an_action(signals: list[int]) -> None:
    seen: list[int] = []
    with Loop(signals, seen.append) as loop:
        os.kill(os.getpid(), signals[0])
        os.kill(os.getpid(), signals[1])
        assert seen == []
        loop.turn()
        assert sorted(seen) == signals
    os.kill(os.getpid(), signals[0])  # the end: nothing happens any more
    assert sorted(seen) == signals


def test_timers_come_in_order(signals: list[int]) -> None:
    seen: list[str] = []
    with Loop((), lambda number: None) as loop:
        loop.after(0.02, lambda: seen.append("later"))
        loop.after(0, lambda: seen.append("first"))
        loop.after(0, lambda: seen.append("second"))
        while len(seen) < 3:
            loop.turn()
    assert seen == ["first", "second", "later"]


def test_a_forgotten_descriptor_is_not_read() -> None:
    one, other = socket.socketpair()
    seen: list[str] = []
    with Loop((), lambda number: None) as loop, one, other:

        def first_come(mine: socket.socket, theirs: socket.socket) -> Callable[[], None]:
            def action() -> None:
                seen.append("read")
                loop.forget(mine.fileno())
                loop.forget(theirs.fileno())

            return action

        loop.read(one.fileno(), first_come(one, other))
        loop.read(other.fileno(), first_come(other, one))
        one.send(b"x")
        other.send(b"x")
        loop.turn()  # both are readable; the first action ends it for both
        assert seen == ["read"]


# Processes


@contextlib.contextmanager
def child(*arguments: str, **options: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(arguments or ("sleep", "1000"), **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_group_is_ours_while_a_child_of_ours_is_in_it() -> None:
    with child(process_group=0) as process:
        assert children.has_children_in(process.pid)
        assert children.is_in(process.pid, process.pid)
        assert not children.is_in(process.pid, os.getpid())
        children.kill_group(process.pid, signal.SIGKILL)
        wait_for(lambda: os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT))
        assert children.has_children_in(process.pid)  # it keeps its number until it is waited for
    assert not children.has_children_in(process.pid)
    assert not children.is_in(process.pid, process.pid)
    children.kill_group(process.pid, signal.SIGKILL)  # nobody is there
    children.kill(process.pid, signal.SIGKILL)


def test_without_waitid_no_group_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with child(process_group=0) as process:
        monkeypatch.delattr(os, "waitid")
        assert not children.has_children_in(process.pid)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd_open")
def test_a_watched_process_makes_its_descriptor_readable() -> None:
    with child() as process:
        descriptor = children.watch(process.pid)
        assert descriptor is not None
        seen: list[str] = []
        with Loop((), lambda number: None) as loop:
            loop.read(descriptor, lambda: seen.append("ended"))
            process.kill()
            loop.turn()
        os.close(descriptor)
        assert seen == ["ended"]
    with pytest.raises(ProcessLookupError):
        children.watch(process.pid)


def test_without_pidfd_a_process_can_only_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    with child() as process:
        assert children.watch(process.pid) is None
    with pytest.raises(ProcessLookupError):
        children.watch(process.pid)


def test_every_end_has_its_words() -> None:
    assert children.ending(0) == "ended with exit code 0"
    assert children.ending(-9) == "was ended by SIGKILL"
    assert children.ending(-63) == "was ended by signal 63"
    assert children.ending(None) == "ended"


def test_orphans_of_children_become_children(tmp_path: Path) -> None:
    """In a process of its own: it cannot be undone."""
    program = """
import os, signal, sys, time
from state_manager.supervisor import children
children.adopt_orphans()
if os.fork() == 0:
    os.setpgid(0, 0)
    if os.fork():
        os._exit(7)
    signal.pause()
ended = []
while not ended:
    ended += children.ended_children()
[(pid, code)] = ended
assert code == 7 and children.has_children_in(pid), ended
children.kill_group(pid, signal.SIGKILL)
while len(ended) < 2:
    ended += children.ended_children()
assert ended[1][1] == -9 and not children.has_children_in(pid), ended
"""
    if sys.platform != "linux":
        pytest.skip("only Linux gives orphans to anybody but PID 1")
    path = str(Path(supervisor.__file__).parents[2])
    subprocess.run([sys.executable, "-c", program], check=True, timeout=SECONDS, env={**os.environ, "PYTHONPATH": path})


# Sockets


def wanted(*addresses: listeners.Address, reuse_port: bool = False) -> Wanted:
    return Wanted(addresses, backlog=8, umask=0o077, uid=os.geteuid(), gid=os.getegid(), reuse_port=reuse_port)


def test_all_addresses_are_opened_or_none() -> None:
    free = Listeners(wanted(("127.0.0.1", 0)))
    port = int(free.urls("http")[0].rpartition(":")[2])
    with pytest.raises(InUse, match=rf"^Connection in use: \('127\.0\.0\.1', {port}\)$"):
        Listeners(wanted(("127.0.0.1", 0), ("127.0.0.1", port)))
    free.close()
    again = Listeners(wanted(("127.0.0.1", port)))
    assert again.urls("https") == [f"https://127.0.0.1:{port}"]
    again.close()


@pytest.mark.skipif(not os.path.exists("/proc/net/tcp"), reason="needs /proc")
def test_the_holder_of_an_address_is_the_parent_of_those_that_share_it(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    opened = Listeners(wanted(("127.0.0.1", 0), path))
    port = int(opened.urls("http")[0].rpartition(":")[2])
    descriptors = opened.filenos()
    with child(sys.executable, "-c", "import time; time.sleep(1000)", pass_fds=descriptors) as heir:  # type: ignore[arg-type]
        assert holder_of(("127.0.0.1", port)) == holder_of(path) == os.getpid()
        assert "sleep(1000)" in listeners.command_of(heir.pid)
        opened.close()
        assert holder_of(("127.0.0.1", port)) == heir.pid
    assert holder_of(("127.0.0.1", port)) is None
    assert listeners.command_of(heir.pid) == ""


@pytest.mark.parametrize(
    "address",
    [("no such host", 0), ("a..b", 0), ("127.0.0.1", 70000), ("203.0.113.1", 0), "/nowhere/x", "x" * 200],
)
def test_an_address_that_cannot_be_had_is_named(address: listeners.Address) -> None:
    with pytest.raises(CannotListen, match=f"cannot listen on {re.escape(str(address))}: "):
        Listeners(wanted(address))


def test_a_name_is_taken_over_only_from_the_dead(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    first = Listeners(wanted(path))
    assert oct(os.stat(path).st_mode & 0o777) == "0o700"
    with pytest.raises(InUse):
        Listeners(wanted(path))
    assert os.path.exists(path)
    first.close()
    second = Listeners(wanted(path))
    first.unlink()  # it is not the first one's any more
    assert os.path.exists(path)
    second.close()
    second.unlink()
    assert not os.path.exists(path)
    second.unlink()  # gunicorn may have been quicker


def test_something_else_of_that_name_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(CannotListen, match="exists and is not a socket"):
        Listeners(wanted(str(path)))
    assert path.read_text() == "precious"


def test_a_lost_name_is_bound_again(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    opened = Listeners(wanted(path))
    os.unlink(path)
    opened.filenos()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    opened.close()


def test_an_inherited_socket_is_used(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        opened = Listeners(wanted(given.fileno()))
        assert opened.urls("http") == [f"http://127.0.0.1:{given.getsockname()[1]}"]
        opened.close()
        socket.create_connection(given.getsockname()).close()  # it is still its owner's


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_has_brackets() -> None:
    try:
        opened = Listeners(wanted(("::1", 0)))
    except OSError:
        pytest.skip("this machine has no ::1")
    assert opened.urls("http")[0].startswith("http://[::1]:")
    opened.close()


# What a person reads


def test_the_command_to_paste_is_as_short_as_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert banner.command("stats", tmp_path / ".state") == "venv/bin/python -m state_manager stats"
    (binaries / "state-manager").touch(0o755)
    assert banner.command("stats", tmp_path / ".state") == "venv/bin/state-manager stats"
    assert banner.command("stop", tmp_path / "a b") == "venv/bin/state-manager stop --dir 'a b'"
    monkeypatch.setenv("PATH", str(binaries))
    assert banner.command("stats", Path("/elsewhere")) == "state-manager stats --dir /elsewhere"
    monkeypatch.setenv("STATE_MANAGER_DIR", "/elsewhere")
    assert banner.command("stats", Path("/elsewhere")) == "state-manager stats"
