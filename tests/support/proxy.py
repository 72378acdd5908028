"""A reverse proxy on the loopback, as people put it before a platform: it has a limit for bodies, and pages of its own."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PAGE = b"<html>\r\n<head><title>%d</title></head>\r\n<body><center>nginx</center></body>\r\n</html>\r\n"
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "host", "content-length")


class Proxy:
    """Passes requests on to `target`. A body of more than `limit` bytes is refused with 413. `seen`: the methods that came."""

    def __init__(self, target: str, *, limit: int) -> None:
        self.target, self.limit = urlsplit(target), limit
        self.seen: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def serving(self) -> Iterator["Proxy"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            proxy.seen.append(self.command)
            size = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(size)
            if size > proxy.limit:
                self.answer(413, {"Content-Type": "text/html"}, PAGE % 413)
                return
            upstream = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=20)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            self.answer(response.status, kept, response.read())
            upstream.close()

        def do_POST(self) -> None:
            self.do_GET()

        def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    return Handler
