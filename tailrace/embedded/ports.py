"""TCP ports: whether one is free, and finding one."""

from __future__ import annotations

import errno
import socket

from tailrace.embedded.options import StackError


def check(host: str, port: int) -> None:
    """Raises StackError with what to change unless ``host:port`` can be listened on."""
    try:
        _bind(host, port)
    except OSError as error:
        match error.errno:
            case errno.EADDRINUSE:
                why = (
                    f"port {port} on {host} is in use: stop what listens there, or choose another with --port"
                )
            case errno.EACCES:
                why = f"port {port} needs more rights than this user has: choose one above 1023 with --port"
            case _:
                why = f"can't listen on {host}: {error.strerror or error}; choose another address with --host"
        raise StackError(why) from None


def pick(preferred: int | None, taken: set[int], host: str = "127.0.0.1") -> int:
    """A free port: the preferred one if it can be had, else one that the system chooses; added to ``taken``.

    Well-known first choices would make stacks that start at the same time race for them.
    """
    for port in (preferred or 0, 0, 0, 0):
        if port in taken:
            continue
        try:
            found = _bind(host, port)
        except OSError:
            continue
        if found not in taken:
            taken.add(found)
            return found
    raise StackError(f"no free port on {host}")


def _bind(host: str, port: int) -> int:
    """Bind and let go again, as a server would that restarts; returns the port."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(1)
        return sock.getsockname()[1]
