"""What crosses the socket, as pure functions of bytes: frames, messages and the handshake.

A frame is a four-byte big-endian length and that many bytes, as ``multiprocessing.connection`` writes it. A request is
the message of ``multiprocessing.managers``, in msgpack: ``[ident, method, [argument ...], {}]``, a write's with its
number as fifth element. A reply is ``[kind, result]`` or, to a write, ``[kind, result, number]``, with the version and
the deadline (if any) of the entry behind it where the write has changed exactly one.

The handshake is the mutual HMAC challenge of ``multiprocessing.connection``: the server challenges first, then the
client. Python up to 3.11 answers with MD5 and 3.12 on with SHA-256; we ask with SHA-256 and take both, so that any
Python's stock client gets in, while our own always answers with SHA-256.

Nothing here, or anywhere in this package, unpickles what it received.
"""

from __future__ import annotations

import hmac
import os
import struct
from typing import Any, Final

import msgpack

from .errors import AuthenticationFailed

RETURN: Final = "#RETURN"
ERROR: Final = "#ERROR"
LOADING: Final = "#LOADING"
"""The manager is reading its journal: connect again in a moment. Sent instead of the reply to the first request."""

LENGTH: Final = struct.Struct("!i")
HEADER: Final = LENGTH.size
PARTS: Final = 1_024
"""Pieces of one frame that lie apart: each costs as much as a small object."""

_unpackb = msgpack.unpackb
_pack_length = LENGTH.pack
_read_length = LENGTH.unpack_from


def frame(payload: bytes) -> bytes:
    """Return the payload with its length before it."""
    return _pack_length(len(payload)) + payload


def packer() -> msgpack.Packer:
    """Return a packer of one's own: one may not be used by two threads at once."""
    return msgpack.Packer(buf_size=4096)  # type: ignore[call-arg]  # not in the stubs yet


def unpack(payload: bytes | memoryview) -> Any:
    """Return the message in a payload. Raises ValueError for anything that is not exactly one msgpack value."""
    try:
        return _unpackb(payload, strict_map_key=False)
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        raise ValueError(f"not a msgpack message ({type(error).__name__}: {error})") from None


class Frames:
    """Cuts a stream of bytes into payloads. A frame over ``limit`` is skipped, and reported as the size that it had."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.started = False  # whether a frame has begun and not ended
        self._buffer = bytearray()
        self._skip = 0
        self._parts: list[bytes] = []  # of a frame that comes in many pieces: put together once, when all are there
        self._missing = 0

    def feed(self, data: bytes) -> list[bytes | int]:
        """Return what these bytes complete: payloads, and the sizes of frames that were too long.

        Raises ValueError when the stream cannot be followed any further.
        """
        if self._missing > len(data):
            self._parts.append(data)
            self._missing -= len(data)
            if len(self._parts) > PARTS:
                self._parts = [b"".join(self._parts)]
            return []
        if self._missing:
            last, data = data[: self._missing], data[self._missing :]
            whole = b"".join([*self._parts, last])
            self._parts, self._missing, self.started = [], 0, False
            return [whole, *self.feed(data)]
        if self._skip:
            data, self._skip = data[self._skip :], max(0, self._skip - len(data))
            self.started = self._skip > 0
        buffer = self._buffer
        if not buffer and len(data) >= HEADER and len(data) == HEADER + _read_length(data)[0] <= self.limit:
            return [data[HEADER:]]  # nearly always: one recv is one frame
        buffer += data
        found: list[bytes | int] = []
        start = 0
        while len(buffer) - start >= HEADER:
            (size,) = _read_length(buffer, start)
            end = start + HEADER + size
            if size < 0:
                raise ValueError("a frame of 2 GiB or more")
            if size > self.limit:
                found.append(size)
                self._skip = max(0, end - len(buffer))
                start = min(end, len(buffer))
            elif len(buffer) < end:
                break
            else:
                found.append(bytes(buffer[start + HEADER : end]))
                start = end
        del buffer[:start]
        if len(buffer) >= HEADER:
            self._missing = HEADER + _read_length(buffer)[0] - len(buffer)
            self._parts = [bytes(buffer[HEADER:])]
            buffer.clear()
        self.started = bool(buffer) or self._missing > 0 or self._skip > 0
        return found


# -- handshake ---------------------------------------------------------------------------------------------------------

_CHALLENGE: Final = b"#CHALLENGE#"
_WELCOME: Final = b"#WELCOME#"
_FAILURE: Final = b"#FAILURE#"
_SHA256: Final = b"{sha256}"
_MD5_SIZE: Final = 16


def challenge() -> bytes:
    """Return a message that only a holder of the key can answer."""
    return _CHALLENGE + _SHA256 + os.urandom(40)


def answer(key: bytes, message: bytes) -> bytes:
    """Return the answer to a challenge. Raises AuthenticationFailed if it is none that we are willing to answer."""
    text = message.removeprefix(_CHALLENGE)
    if text == message or len(text) < 20:
        raise AuthenticationFailed("the peer did not begin with a challenge: it is not a manager")
    if not text.startswith(_SHA256):
        # Only a server of Python 3.11 or older asks like this, and ours never does.
        raise AuthenticationFailed("the peer asked for an outdated digest: it is not a manager of this package")
    return _SHA256 + hmac.digest(key, text, "sha256")


def is_answer(key: bytes, message: bytes, response: bytes) -> bool:
    """Return whether ``response`` proves that the peer knows the key, for the challenge that it was sent."""
    text = message.removeprefix(_CHALLENGE)
    if len(response) == _MD5_SIZE:
        return hmac.compare_digest(hmac.digest(key, text, "md5"), response)
    return hmac.compare_digest(_SHA256 + hmac.digest(key, text, "sha256"), response)


class Handshake:
    """The server's half: feed it payloads and send what it returns, until ``done``.

    It challenges (``first``), checks the answer, and then answers the client's own challenge.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._state = "answer"
        self.first = challenge()
        self.done = False
        self.failed = False

    def receive(self, payload: bytes) -> list[bytes]:
        """Return the payloads to send. After ``failed`` they are the last."""
        if self._state == "answer":
            if not is_answer(self._key, self.first, payload):
                self.failed = True
                return [_FAILURE]
            self._state = "challenge"
            return [_WELCOME]
        if self._state == "challenge":
            text = payload.removeprefix(_CHALLENGE)
            if text == payload or len(text) < 20:
                self.failed = True
                return [_FAILURE]
            self._state = "welcome"
            # A stock client of Python 3.11 asks without naming a digest, and means MD5.
            if text.startswith(_SHA256):
                return [_SHA256 + hmac.digest(self._key, text, "sha256")]
            return [hmac.digest(self._key, text, "md5")]
        self.done = payload == _WELCOME
        self.failed = not self.done
        return []


def client_handshake(key: bytes, asked: bytes) -> tuple[bytes, bytes]:
    """Return the answer to the server's challenge and the challenge to send after its welcome."""
    return answer(key, asked), challenge()


def check_welcome(payload: bytes) -> None:
    """Raise AuthenticationFailed unless the server took our answer."""
    if payload != _WELCOME:
        raise AuthenticationFailed("the manager refused the key: is it the one in this state directory?")


def check_server(key: bytes, asked: bytes, response: bytes) -> bytes:
    """Return the welcome for a server that answered our challenge. Raises AuthenticationFailed if it did not."""
    if not is_answer(key, asked, response):
        raise AuthenticationFailed("the peer does not know the key: it is not the manager of this state directory")
    return _WELCOME
