"""uvicorn, with the few things that our contract wants of it: OpenAI's shape also for what is not HTTP."""

from __future__ import annotations

import asyncio
from typing import cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.app import make_app
from schemas.codec import dumps
from schemas.errors import HeadTooLarge, InvalidRequest, TailraceError
from schemas.settings import Settings

#: How long open streams may go on after SIGTERM, in seconds.
GRACE = 5
#: Bytes of a request line and its headers; a head that comes in a single read may be some larger.
HEAD_LIMIT = 64 * 1024
#: How long the rest of a body is read and thrown away after its answer, in seconds. A client that is still sending
#: may lose an answer after which the connection is closed at once.
LINGER = 3.0


class Protocol(HttpToolsProtocol):
    """Answers what can't be parsed (a header with control characters, say) in the shape of every other error."""

    _in_head = False
    _head_size = 0
    _refusal: bytes | None = None
    _lingering: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._stay(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(
                InvalidRequest(
                    "Invalid HTTP request. Check the request line and the headers.", code="invalid_http"
                )
            )
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > HEAD_LIMIT:
                self._refuse(
                    HeadTooLarge(f"The request line and the headers are larger than {HEAD_LIMIT:,} bytes.")
                )

    def _stay(self, rest: bytes) -> None:
        """We speak no other protocol. The parser has taken the body for bytes of one, so the request is read once
        more, without its Upgrade header."""
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/1.1\r\n"]
        for name, value in self.headers:
            if name != b"upgrade":
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join([*head, b"\r\n", rest]))

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_size = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("CONNECT")
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self.cycle.more_body = False
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or not self.cycle.response_complete:
            return
        if self._refusal is not None:
            self._close(self._refusal)
        elif self.cycle.more_body:
            self._lingering = self.loop.call_later(LINGER, self.transport.close)

    def _refuse(self, error: TailraceError) -> None:
        """The last answer of this connection. What was asked before is answered first."""
        body = dumps(error.body())
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self._refusal = STATUS_LINE[error.http_status] + head.encode() + body
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or (cycle.response_complete and not cycle.more_body):
            self._close(self._refusal)
        elif cycle.more_body:  # it is the body that can't be read: the connection is lost
            answered = cycle.response_started or self.pipeline
            self._close(b"" if answered else self._refusal)

    def _close(self, last: bytes) -> None:
        self.transport.write(last)
        self.transport.close()


def serve(settings: Settings, *, host: str, port: int, log_level: str = "warning") -> None:
    """Serve until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        make_app(settings),
        host=host,
        port=port,
        http=Protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,
        log_level=log_level,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=75,
        backlog=4096,
        h11_max_incomplete_event_size=None,
    )
    uvicorn.Server(config).run()
