"""JWT revocation: a token that was logged out is refused by every worker from that moment on.

The call: ``add(jti, True, ttl=...)``, with the time that the token itself has left. So the list never holds more than
the tokens that could still be used, and nobody has to clean it. ``in`` is answered from the worker's own memory and is
exact all the same, so the check costs next to nothing. (Needs PyJWT; your tokens need a `jti` and an `exp`.)
"""

import time
from typing import Any

import jwt

import state_manager

revoked = state_manager.connect().dict("revoked-tokens")


def claims_of(token: str, key: str) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(token, key, ["HS256"], options={"require": ["jti", "exp"]})
    if claims["jti"] in revoked:
        raise jwt.InvalidTokenError("This token was revoked.")
    return claims


def revoke(claims: dict[str, Any]) -> None:
    revoked.add(claims["jti"], True, ttl=max(claims["exp"] - time.time(), 1))
