"""Port numbers for servers that must come back on the same one."""

import random
import socket

# Below the range that systems take the ports of outgoing connections from (Linux 32768, others 49152): while a test
# has its server stopped, no connection can land on the server's port.
_PORTS = range(20_000, 32_000)

_given: set[int] = set()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing uses. It is given out once in a process; nothing reserves it."""
    while True:
        port = random.choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port
