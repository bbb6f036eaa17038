"""uvicorn, with the few things that our contract wants of it: OpenAI's shape also for what is not HTTP."""

from __future__ import annotations

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.app import make_app
from schemas.codec import dumps
from schemas.errors import InvalidRequest
from schemas.settings import Settings

#: How long open streams may go on after SIGTERM, in seconds.
GRACE = 5


class Protocol(HttpToolsProtocol):
    """Answers what can't be parsed (a header with control characters, say) in the shape of every other error."""

    def send_400_response(self, msg: str) -> None:
        body = dumps(
            InvalidRequest(f"{msg} Check the request line and the headers.", code="invalid_http").body()
        )
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
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
        log_level=log_level,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=75,
        backlog=4096,
        h11_max_incomplete_event_size=None,
    )
    uvicorn.Server(config).run()
