"""An HTTP proxy on the loopback address."""

from __future__ import annotations

import select
import socket
import threading


class Proxy:
    """Passes CONNECT and plain requests on, and remembers their first lines and the passwords that came with them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.passwords: list[str | None] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        lines = head.decode("latin-1").split("\r\n")
        self.lines.append(lines[0])
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        self.passwords.append(headers.get("Proxy-Authorization") or headers.get("proxy-authorization"))
        method, where, _ = lines[0].split(" ")
        address = where if method == "CONNECT" else where.split("/")[2]
        host, port = address.rsplit(":", 1)
        with client, socket.create_connection((host, int(port))) as upstream:
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                upstream.sendall(head.replace(f"http://{address}".encode(), b"", 1))
            while True:
                for ready in select.select([client, upstream], [], [])[0]:
                    try:
                        data = ready.recv(65536)
                        if not data:
                            return
                        (upstream if ready is client else client).sendall(data)
                    except OSError:
                        return

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
