from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import state_manager
from state_manager import cli, cli_commands, sidecar
from tests.cli.harness import DEADLINE, Run, Spawn, running


def test_a_value_is_read_from_standard_input(
    spawn: Spawn, directory: Path, manager: state_manager.StateManager
) -> None:
    large = list(range(100_000))
    child = spawn("--dir", str(directory), "set", "carts", "big", "-", stdin=subprocess.PIPE)
    assert child.communicate(json.dumps(large), DEADLINE) == ("", "")
    assert child.returncode == 0
    assert manager.dict("carts")["big"] == large
    child = spawn("--dir", str(directory), "get", "carts", "big")
    assert json.loads(child.communicate(timeout=DEADLINE)[0]) == large


def test_a_pipe_that_closes_early_is_no_error(
    spawn: Spawn, directory: Path, manager: state_manager.StateManager
) -> None:
    manager.dict("carts").set_many({f"user-{number}": 1 for number in range(20_000)})
    child = spawn("--dir", str(directory), "keys", "carts")
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline().startswith("user-")
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(DEADLINE) == cli.BROKEN_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which this system lacks")
def test_a_full_disk_is_one_line(directory: Path) -> None:
    with open("/dev/full", "w") as full:
        child = subprocess.run(
            [sys.executable, "-m", "state_manager", "stats", "--dir", str(directory)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE,
        )
    assert child.returncode == 3
    assert child.stderr == "state-manager: [Errno 28] No space left on device\n"


def test_watch_prints_changes_until_it_is_interrupted(
    spawn: Spawn, directory: Path, manager: state_manager.StateManager
) -> None:
    carts = manager.dict("carts")
    carts.update({"alice": 1, "bob": 1})
    child = spawn("--dir", str(directory), "watch", "carts", "--interval", "0.02", "--json")
    assert child.stdout is not None
    assert child.stderr is not None
    assert "Ctrl-C" in child.stderr.readline()  # it has looked once
    seen = []
    for change in (
        lambda: carts.set("alice", True),
        lambda: carts.delete("bob"),
        lambda: carts.add("eve", [1]),
    ):
        change()
        seen.append(json.loads(child.stdout.readline()))
    child.send_signal(signal.SIGINT)
    assert child.wait(DEADLINE) == 130
    assert child.stderr.read() == ""
    assert [{name: change[name] for name in change if name != "time"} for change in seen] == [
        {"key": "alice", "value": True},  # True == 1, and yet it is a change
        {"key": "bob", "gone": True},
        {"key": "eve", "value": [1]},
    ]


def test_watch_can_look_at_one_key(
    run: Run, manager: state_manager.StateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    carts = manager.dict("carts")
    rounds = iter([{"bob": 1}, {"alice": {"n": 1}}])

    def sleep(seconds: float) -> None:
        assert seconds == 7.5
        try:
            carts.update(next(rounds))
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(time, "sleep", sleep)
    code, out, err = run("watch", "carts", "alice", "--interval", "7.5")
    assert code == 130
    assert re.fullmatch(r'\d\d:\d\d:\d\d  alice  \{"n": 1\}\n', out)
    assert "every 7.5 s" in err


def test_serve_is_ready_stops_in_order_and_refuses_a_second(spawn: Spawn, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    with running(directory):
        second = spawn("serve", "--dir", str(directory))
        out, err = second.communicate(timeout=DEADLINE)
        assert second.returncode == 3
        assert out == ""
        assert f"another manager (pid {sidecar.find(directory)})" in err
        assert "Traceback" not in err


def test_stop_waits_until_the_manager_is_gone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path / "state") as directory:
        pid = sidecar.find(directory)
        assert cli.main(["stop", "--dir", str(directory)]) == 0
        assert sidecar.find(directory) is None
        assert capsys.readouterr().out == f"stopped the manager of {directory} (pid {pid})\n"


def test_stop_says_when_the_manager_was_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_commands, "SUCCESSOR_TIMEOUT", DEADLINE)  # a busy machine takes longer to start one
    directory = tmp_path / "state"
    first = sidecar.start(directory)
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: first.wait(DEADLINE) == 0 and sidecar.start(directory))
        try:
            assert cli.main(["stop", "--json", "--dir", str(directory)]) == 0
        finally:
            child = second.result(DEADLINE)
            assert child
            child.terminate()
            child.wait(DEADLINE)
    document = {"directory": str(directory), "stopped": first.pid, "successor": child.pid}
    assert json.loads(capsys.readouterr().out) == document


def test_a_client_command_never_loads_the_server(directory: Path) -> None:
    code = (
        "import sys; from state_manager import cli; assert cli.main(sys.argv[1:]) == 0;"
        "print(*sorted(name for name in sys.modules if name.startswith(('state_manager', 'gunicorn', 'flask'))))"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, "--dir", str(directory), "ping"],
        capture_output=True, text=True, timeout=DEADLINE, check=True,
    )  # fmt: skip
    loaded = set(child.stdout.splitlines()[-1].split())
    assert "state_manager.client" in loaded
    assert not loaded & {f"state_manager.{name}" for name in ("server", "manager", "service", "commands", "memory")}
    assert not [name for name in loaded if name.startswith(("gunicorn", "flask"))]
