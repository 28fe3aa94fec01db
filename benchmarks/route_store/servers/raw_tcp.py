"""The floor: bytes in and out of a TCP socket, nothing else.

A client sends `op, length` and, to put, the bytes; puts are answered with one byte, gets
with the bytes.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading

REQUEST = struct.Struct("<cQ")


def receive_into(connection: socket.socket, view: memoryview) -> None:
    """Fill `view` from a socket."""
    done = 0
    while done < len(view):
        got = connection.recv_into(view[done:])
        if not got:
            raise ConnectionResetError
        done += got


def _serve(connection: socket.socket) -> None:
    kept = bytearray()
    head = bytearray(REQUEST.size)
    try:
        while True:
            receive_into(connection, memoryview(head))
            operation, length = REQUEST.unpack(head)
            if len(kept) != length:
                kept = bytearray(length)
            if operation == b"P":
                receive_into(connection, memoryview(kept))
                connection.sendall(b"\x00")
            else:
                connection.sendall(kept)
    except ConnectionError:
        connection.close()


def main() -> None:
    """Serve on the port that is the first argument."""
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
