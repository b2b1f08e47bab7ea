"""Frames, messages and the handshake, as bytes: whole, byte by byte, and with a tail."""

from __future__ import annotations

import hmac
import itertools
import multiprocessing.connection
import threading
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state_manager import wire
from state_manager.errors import AuthenticationFailed

LIMIT = 50


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    """Cut a stream at these places."""
    edges = [0, *sorted({place % (len(stream) + 1) for place in places}), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


@given(st.lists(st.binary(max_size=2 * LIMIT), max_size=6), st.lists(st.integers(0, 1000), max_size=8))
def test_frames_come_out_as_they_went_in_however_they_are_cut(payloads: list[bytes], places: list[int]) -> None:
    frames = wire.Frames(LIMIT)
    found = []
    for piece in cut(b"".join(map(wire.frame, payloads)), places):
        found += frames.feed(piece)
    assert found == [payload if len(payload) <= LIMIT else len(payload) for payload in payloads]
    assert not frames.started


def test_a_frame_byte_by_byte_and_with_a_tail() -> None:
    frames = wire.Frames(LIMIT)
    stream = wire.frame(b"hello") + wire.frame(b"x" * 60) + wire.frame(b"") + b"\0\0"
    found = [payload for byte in stream for payload in frames.feed(bytes([byte]))]
    assert found == [b"hello", 60, b""]
    assert frames.started


def test_a_frame_of_two_gigabytes_cannot_be_followed() -> None:
    with pytest.raises(ValueError, match="2 GiB"):
        wire.Frames(LIMIT).feed(b"\xff\xff\xff\xff" + b"\0" * 8)


def test_an_over_long_frame_is_never_held_in_memory() -> None:
    frames = wire.Frames(LIMIT)
    assert frames.feed(wire.LENGTH.pack(10**9) + b"x") == [10**9]
    for _ in range(100):
        assert frames.feed(b"x" * 10_000) == []
        assert not frames._buffer
    assert frames.started


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_value_error(payload: bytes) -> None:
    try:
        message = wire.unpack(payload)
    except ValueError:
        return
    assert msgpack.packb(message) is not None


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x01", b"\x01\x02", b"\x80\x04\x95.", b"\xdf\xff\xff\xff\xff"])
def test_what_is_not_one_message_is_a_value_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match="msgpack"):
        wire.unpack(payload)


# -- handshake ---------------------------------------------------------------------------------------------------------


def test_both_sides_show_that_they_know_the_key() -> None:
    server = wire.Handshake(b"key")
    answer, challenge = wire.client_handshake(b"key", server.first)
    [welcome] = server.receive(answer)
    wire.check_welcome(welcome)
    [response] = server.receive(challenge)
    assert not server.done
    assert server.receive(wire.check_server(b"key", challenge, response)) == []
    assert server.done
    assert not server.failed


def test_a_client_with_another_key_is_refused() -> None:
    server = wire.Handshake(b"key")
    answer, _ = wire.client_handshake(b"other", server.first)
    [refusal] = server.receive(answer)
    assert server.failed
    with pytest.raises(AuthenticationFailed, match="refused"):
        wire.check_welcome(refusal)


def test_a_server_that_does_not_know_the_key_is_found_out() -> None:
    _, challenge = wire.client_handshake(b"key", wire.challenge())
    for response in (b"", b"#WELCOME#", b"{sha256}" + b"\0" * 32, b"\0" * 16):
        with pytest.raises(AuthenticationFailed, match="does not know"):
            wire.check_server(b"key", challenge, response)


@pytest.mark.parametrize("asked", [b"", b"hello", b"#CHALLENGE#", b"#CHALLENGE#" + b"x" * 20, b"HTTP/1.1 400 Bad"])
def test_a_peer_that_is_no_manager_gets_no_answer(asked: bytes) -> None:
    with pytest.raises(AuthenticationFailed):
        wire.answer(b"key", asked)


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=4))
def test_nobody_gets_in_without_the_key(payloads: list[bytes]) -> None:
    server = wire.Handshake(b"key")
    for payload in payloads:
        server.receive(payload)
        if server.failed:
            break
    assert not server.done


def test_replaying_an_answer_does_not_help() -> None:
    first, second = wire.Handshake(b"key"), wire.Handshake(b"key")
    answer, _ = wire.client_handshake(b"key", first.first)
    second.receive(answer)
    assert second.failed


def test_the_standard_library_gets_in() -> None:
    """As Python 3.11 does, with MD5, and as 3.12 on does, with SHA-256; whichever this is."""
    ours, theirs = multiprocessing.connection.Pipe()
    errors: list[Any] = []

    def client() -> None:
        try:
            multiprocessing.connection.answer_challenge(theirs, b"key")
            multiprocessing.connection.deliver_challenge(theirs, b"key")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    server = wire.Handshake(b"key")
    ours.send_bytes(server.first)
    while not server.done:
        for payload in server.receive(ours.recv_bytes()):
            ours.send_bytes(payload)
        assert not server.failed
    thread.join()
    assert errors == []
    ours.close()
    theirs.close()


def test_a_legacy_client_gets_in() -> None:
    server = wire.Handshake(b"key")
    [welcome] = server.receive(hmac.digest(b"key", server.first.removeprefix(b"#CHALLENGE#"), "md5"))
    assert welcome == b"#WELCOME#"
    question = b"q" * 20
    assert server.receive(b"#CHALLENGE#" + question) == [hmac.digest(b"key", question, "md5")]
    server.receive(b"#WELCOME#")
    assert server.done


def test_a_frame_in_many_pieces_costs_little_more_than_its_size() -> None:
    frames = wire.Frames(2**20)
    payload = bytes(range(250)) * 80
    stream = wire.frame(payload)
    found = [payload for i in range(0, len(stream), 2) for payload in frames.feed(stream[i : i + 2])]
    assert found == [payload]
    assert frames.feed(stream[:-1]) == []
    for byte in stream[:10]:
        frames.feed(bytes([byte]))  # one ends the frame, the others begin another
    frames = wire.Frames(2**20)
    frames.feed(stream[:10])
    for i in range(10, len(stream) - 1):
        frames.feed(stream[i : i + 1])
        assert len(frames._parts) <= wire.PARTS


def test_after_an_over_long_frame_the_next_one_is_whole() -> None:
    frames = wire.Frames(LIMIT)
    long = wire.frame(b"x" * (2 * LIMIT))
    assert frames.feed(long[:-5]) == [2 * LIMIT]
    assert frames.feed(long[-5:] + wire.frame(b"next")) == [b"next"]
    assert not frames.started
