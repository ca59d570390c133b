"""Who may come in, and with how much: token, host name, size and duration of requests, before any of the application's code runs."""
from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "spineclue_token"
OPEN = ("/health",)
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
           "Cross-Origin-Resource-Policy": "same-origin"}


class Gate:
    """ASGI middleware.

    The token is taken from `Authorization: Bearer`, the cookie that the first page sets, `?token=`, or a path that begins with
    `/t/TOKEN/`, which serves clients that know nothing but an address.

    Args:
        token: None: everybody may come in.
        hosts: names that the service may be called by (header `Host`, without port); empty: any. Without a token this keeps pages of
            other sites out, whose names were made to point here.
        body_bytes, body_seconds: of one request.
    """

    def __init__(self, app: ASGIApp, token: str | None, hosts: Collection[str], body_bytes: int, body_seconds: float) -> None:
        self._app, self._token, self._hosts = app, token, frozenset(hosts)
        self._bytes, self._seconds = body_bytes, body_seconds
        self._too_large = f"The upload is too large; {body_bytes / 2**20:.0f} MB are taken at most."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no web sockets
        headers = Headers(scope=scope)
        scope = _without_prefix(scope)
        trouble = self._trouble(scope, headers)
        if trouble is not None:
            await JSONResponse({"detail": trouble[1]}, trouble[0], HEADERS | {"Connection": "close"})(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()
                                                             if name.lower().encode() not in given)]
            await send(message)

        await self._app(scope, self._limited(receive), guarded)

    def _trouble(self, scope: Scope, headers: Headers) -> tuple[int, str] | None:
        host = headers.get("host", "").rsplit(":", 1)[0] if not headers.get("host", "").endswith("]") else headers["host"]
        if self._hosts and host.lower() not in self._hosts:
            return 421, f"This service is not called {host[:80]!r}; use the address that it printed."
        origin = headers.get("origin")
        if origin is not None and origin != "null" and origin.split("://", 1)[-1] != headers.get("host") and scope["method"] != "GET":
            return 403, "A page of another site may not send scans here."
        if self._token is not None and scope["path"] not in OPEN and not any(
                secrets.compare_digest(given.encode(), self._token.encode()) for given in _tokens(scope, headers)):
            return 401, "The token is missing or wrong; open the address that the service printed, or send 'Authorization: Bearer TOKEN'."
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._bytes:
            return 413, self._too_large
        return None

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that ends bodies which are too long or come too slowly."""
        end, got, complete = time.monotonic() + self._seconds, 0, False

        async def limited() -> Message:
            nonlocal got, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, end - time.monotonic()))
            except asyncio.TimeoutError:
                raise HTTPException(408, f"The upload took longer than {self._seconds:.0f} s.", {"Connection": "close"}) from None
            got += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if got > self._bytes:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        return limited


def _without_prefix(scope: Scope) -> Scope:
    """`/t/TOKEN/rest` as `/rest`, with the token kept aside."""
    parts = scope["path"].split("/", 3)
    if len(parts) < 3 or parts[:2] != ["", "t"]:
        return scope
    rest = "/" + (parts[3] if len(parts) > 3 else "")
    return {**scope, "path": rest, "raw_path": rest.encode(), "token_of_path": parts[2]}


def _tokens(scope: Scope, headers: Headers) -> list[str]:
    found = [scope.get("token_of_path", ""), *parse_qs(scope["query_string"].decode("latin-1")).get("token", [])]
    kind, _, given = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        found.append(given.strip())
    try:
        cookie: Any = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        found += [cookie.value] if cookie else []
    except CookieError:
        pass
    return [token for token in found if token]
