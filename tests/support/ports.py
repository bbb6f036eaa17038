"""Free TCP ports for servers that tests start."""

from __future__ import annotations

import socket

#: Sockets that hold the ports for as long as this process lives; nothing ever closes them.
_held: list[int] = []


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on, and that no process gets but who binds it by number.

    A socket that is bound and does not listen holds it: the system gives the port neither to another that asks for a
    free one nor to a connection on its way out, also while a server that is killed is not there yet again. A server
    binds it nevertheless, with SO_REUSEADDR, as all do.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port: int = holder.getsockname()[1]
    _held.append(holder.detach())
    return port
