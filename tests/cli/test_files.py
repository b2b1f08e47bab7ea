"""backup, restore, export and import, as a user types them; what they do is tested with their modules."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

import state_manager
from state_manager import cli, sidecar
from state_manager.cli_output import Progress
from tests.cli.harness import DEADLINE, Run, Spawn, running


def test_backup_and_restore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where, backup = ["--dir", str(tmp_path / "state")], str(tmp_path / "backup")
    with running(tmp_path / "state") as directory:
        assert cli.main(["set", "carts", "alice", "1", *where]) == 0
        assert cli.main(["backup", backup, *where]) == 0
        size = os.stat(backup).st_size
        assert capsys.readouterr() == (f"backed up {directory} to {backup} ({size:,} bytes)\n", "")
        assert cli.main(["set", "carts", "alice", "2", *where]) == 0
        assert cli.main(["restore", backup, *where]) == 3
        out, err = capsys.readouterr()
        assert out == ""
        assert f"a manager (pid {sidecar.find(directory)}) serves {directory}" in err
        assert "--force" in err
        assert cli.main(["restore", backup, "--force", *where]) == 0
        out, err = capsys.readouterr()
        assert out.startswith("restored ")
        assert f"former journal is kept as {directory}/journal.00000001.before-restore" in out
        assert sidecar.find(directory) is None
    with running(directory):
        assert cli.main(["get", "carts", "alice", *where]) == 0
        assert capsys.readouterr().out == "1\n"


def test_a_bad_backup_does_not_end_the_manager(run: Run, directory: Path, tmp_path: Path) -> None:
    before = sidecar.find(directory)
    (tmp_path / "bad").write_text("no backup")
    code, out, err = run("restore", "--force", str(tmp_path / "bad"))
    assert (code, out) == (3, "")
    assert f"{tmp_path / 'bad'} is not a backup" in err
    assert run("restore", "--force", str(tmp_path / "missing")).code == 3
    assert sidecar.find(directory) == before


def test_export_and_import(run: Run, manager: state_manager.StateManager, tmp_path: Path) -> None:
    manager.dict("carts").update({"alice": {"n": 1}, 7: "x"})
    manager.counter("visits").reset(5)
    lines = run("export").out.splitlines()
    assert {"counter": "visits", "value": 5} in map(json.loads, lines)
    assert {"dict": "carts", "key": 7, "value": "x"} in map(json.loads, lines)
    file = tmp_path / "all.jsonl"
    answer = run("export", str(file))
    assert (answer.code, answer.out) == (0, "")
    assert f"exported {len(lines)} entries" in answer.err
    assert file.read_text().splitlines() == lines
    manager.dict("carts").clear()
    manager.counter("visits").reset(0)
    assert run("import", str(file)) == (0, "", f"state-manager: imported {len(lines)} lines\n")
    assert manager.dict("carts") == {"alice": {"n": 1}, 7: "x"}
    assert manager.counter("visits").value == 5


def test_import_reads_standard_input(spawn: Spawn, directory: Path, manager: state_manager.StateManager) -> None:
    child = spawn("--dir", str(directory), "import", stdin=subprocess.PIPE)
    out, err = child.communicate('{"dict": "carts", "key": "é", "value": 1}\n{"dict": "carts"}\n', DEADLINE)
    assert (child.returncode, out) == (2, "")
    assert err.startswith("state-manager: line 2: it has no 'key'")
    assert manager.dict("carts") == {"é": 1}


def test_what_json_cannot_hold(run: Run, manager: state_manager.StateManager, tmp_path: Path) -> None:
    manager.dict("carts").update({"a": 1, "b": (1,), "c": 2})
    file = tmp_path / "all.jsonl"
    code, _, err = run("export", str(file))
    assert code == 2
    assert "carts['b'] cannot be written as JSON" in err
    assert "--skip" in err
    assert not os.listdir(tmp_path)  # no half of it, and no file aside
    answer = run("export", "--skip", str(file))
    assert answer.code == 0
    assert "skipped: carts['b']" in answer.err
    assert "skipped 1" in answer.err
    kept = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["key"] for line in kept if line.get("dict") == "carts"] == ["a", "c"]


def test_export_reads_the_journal_where_no_manager_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--dir", str(tmp_path / "state")]
    with running(tmp_path / "state"):
        assert cli.main(["set", "carts", "alice", '{"n": 1}', *where]) == 0
        assert cli.main(["secret", "rotate", *where]) == 0
    capsys.readouterr()
    assert cli.main(["export", *where]) == 0
    assert capsys.readouterr().out == '{"dict": "carts", "key": "alice", "value": {"n": 1}}\n'


def test_a_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("state_manager.cli_output.REDRAW", 0.0)
    with Progress("counting") as progress:
        progress(1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with Progress("counting") as progress:
        progress(1, 2)
        assert capsys.readouterr().err == f"\rcounting [{'#' * 15:30}]  50%"
        progress(1500, 0)
        assert capsys.readouterr().err == "\rcounting 1,500"
    assert capsys.readouterr().err == "\r\033[K"
