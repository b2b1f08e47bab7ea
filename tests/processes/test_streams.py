"""Streams in real gunicorns: browsers on different workers, a manager and workers that are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import state_manager
from tests.processes.harness import SECONDS, Server, Start, wait_for


class Stream:
    """What a browser's EventSource reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        while self._file.readline().strip():
            pass  # its headers
        self._text = ""

    def _chunk(self) -> str:
        size = int(self._file.readline(), 16)
        data = self._file.read(size).decode()
        self._file.readline()
        return data

    def event(self) -> dict[str, Any]:
        """Return the next event that is not a comment, nor about the connection; {} at the end."""
        while "\n\n" not in self._text:
            chunk = self._chunk()
            if not chunk:
                return {}
            self._text += chunk
        event, _, self._text = self._text.partition("\n\n")
        fields = dict(re.findall(r"^(\w+): (.*)$", event, re.MULTILINE))
        return fields if "data" in fields else self.event()


@contextmanager
def streaming(server: Server, last: str = "") -> Iterator[Stream]:
    header = f"Last-Event-ID: {last}\r\n" if last else ""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as sock:
        sock.sendall(f"GET /messages/stream HTTP/1.1\r\nHost: localhost\r\n{header}\r\n".encode())
        yield Stream(sock)


def waiting(manager: state_manager.StateManager) -> set[int | None]:
    """Return the pids of those who wait for messages."""
    return {worker.pid for worker in manager.workers() if "message of channel messages" in worker.waits}


def test_two_browsers_on_two_workers_see_each_others_messages(start: Start) -> None:
    server = start("--workers", "2", "--threads", "4")
    wait_for(lambda: len(server.workers()) == 2, "two workers")
    with state_manager.connect(server.directory) as manager, ExitStack() as stack:
        streams = []
        for stopped in server.workers():  # so that the other one accepts
            os.kill(stopped, signal.SIGSTOP)
            streams.append(stack.enter_context(streaming(server)))
            assert streams[-1].status == 200
            os.kill(stopped, signal.SIGCONT)
        wait_for(lambda: waiting(manager) == server.workers(), "a stream of each worker")
        assert server.browser().post("/messages", text="hello").status == 204
        events = [stream.event() for stream in streams]
        assert {json.loads(event["data"])["text"] for event in events} == {"hello"}
        assert len({event["id"] for event in events}) == 1

        # The manager ends: the streams go on, or are opened again, and miss nothing.
        before = server.manager()
        os.kill(before, signal.SIGKILL)
        server.manager_after(before)
        wait_for(lambda: server.browser().post("/messages", text="again").status == 204, "the next manager")
        for stream in streams:
            event = stream.event()
            if event:
                assert json.loads(event["data"])["text"] == "again"
            else:
                with streaming(server, last=events[0]["id"]) as anew:
                    assert json.loads(anew.event()["data"])["text"] == "again"

        # A worker is killed: the browser connects again, to the other one, and says what it had last.
        last = server.browser()
        with streaming(server) as stream:
            assert last.post("/messages", text="one").status == 204
            one = stream.event()
            for pid in server.workers():
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(server.workers()) == 2, "new workers")
        assert last.post("/messages", text="two").status == 204
        with streaming(server, last=one["id"]) as stream:
            assert json.loads(stream.event()["data"])["text"] == "two"


def test_a_browser_that_leaves_frees_its_thread_and_a_stop_waits_for_none(start: Start, home: Path) -> None:
    (home / "quick.py").write_text(
        "from state_manager.flask import streams\nstreams.KEEP_ALIVE = 0.1\nfrom web import app\n"
    )
    server = start("--workers", "1", "--threads", "4", "quick:app")
    with state_manager.connect(server.directory) as manager:
        state = manager.channel("messages").state
        with streaming(server), streaming(server):
            wait_for(lambda: state().waiting == 2, "two streams")
        wait_for(lambda: state().waiting == 0, "their end")
        with streaming(server) as stream:
            wait_for(lambda: state().waiting == 1, "a stream")
            began = time.monotonic()
            server.signal(signal.SIGTERM)
            assert server.exit_code() == 0
            assert time.monotonic() - began < 10
            assert stream.event() == {}
