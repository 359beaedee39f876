"""Who may ask, and what an answer may do: Host, Origin and token of every request; headers of every answer.

A page elsewhere that is open in the same browser can send requests here. It is told from ours by Origin and
Sec-Fetch-Site, and a foreign name that was pointed at this machine (DNS rebinding) by Host.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneshotgan.errors import UserError

SHORTEST_TOKEN = 8  # characters
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine as only its own programs reach it."""
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_access(host: str, token: str | None) -> None:
    """Raise a UserError unless a server at `host` is safe with this token."""
    if token is None and not is_loopback(host):
        raise UserError(f"--host {host} lets other machines in: give --token as well, a secret of your own")
    if token is not None and len(token) < SHORTEST_TOKEN:
        raise UserError(f"--token must have {SHORTEST_TOKEN} characters or more")


class Guard:
    """ASGI middleware around everything.

    Args:
        host: that the server listens at.
        port: the same.
        token: which every request must know, None for none.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, token: str | None = None) -> None:
        self.app, self.host, self.port, self.token = app, host, port, token
        self.cookie = f"oneshotgan-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        answer = self._refusal(scope) or self._admission(scope)
        await (answer or self.app)(scope, receive, guarded)

    # --- Host and Origin ---

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if len(headers.getlist("host")) != 1 or not self._known_host(host):
            return PlainTextResponse("This name is not one of this server's.", 421)
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        own = origin is not None and origin.lower() == f"http://{host}".lower()
        reads = scope["method"] in ("GET", "HEAD")
        if not own and not (reads and origin is None):
            return PlainTextResponse("This request comes from another site.", 403)
        visits = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        if site not in ("none", "same-origin") and not (reads and visits):
            return PlainTextResponse("This request comes from another site.", 403)
        return None

    def _known_host(self, text: str) -> bool:
        """Whether a Host header names this server: its own name or address, and its port."""
        try:
            parts = urlsplit(f"//{text}")
            name, port = (parts.hostname or ""), (parts.port or 80)
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path or parts.query or parts.fragment:
            return False
        if is_loopback(self.host):
            return name in LOOPBACK or name == self.host
        if name in (self.host.lower(), socket.gethostname().lower(), *LOOPBACK):
            return True
        try:
            ipaddress.ip_address(name)  # a number is nobody's name, so it cannot be pointed elsewhere
        except ValueError:
            return False
        return True

    # --- the token ---

    def _admission(self, scope: Scope) -> Response | None:
        """None for who knows the token; else a redirect that sets the cookie, or a refusal."""
        if self.token is None:
            return None
        headers = Headers(scope=scope)
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if _equal(given, self.token) or _equal(self._cookie(headers.get("cookie", "")), self._pass()):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if any(name == "token" and _equal(value, self.token) for name, value in query):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            path = "/" + scope.get("raw_path", scope["path"].encode()).decode("latin-1").lstrip("/\\")
            answer = RedirectResponse(path + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self.cookie, self._pass(), path="/", httponly=True, samesite="strict")
            return answer
        return PlainTextResponse("Open the address that the server printed, with its token.", 401)

    def _pass(self) -> str:
        """What the cookie holds: made from the token, and not the token itself."""
        return hmac.new((self.token or "").encode(), b"oneshotgan page", hashlib.sha256).hexdigest()

    def _cookie(self, header: str) -> str:
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found is not None else ""


def _equal(a: str, b: str) -> bool:
    """Compared in a time that says nothing about where the two differ."""
    return hmac.compare_digest(a.encode("utf-8", "replace"), b.encode("utf-8", "replace"))
