"""A reverse proxy on loopback, like those in front of platforms. It has a limit for bodies, and its own error pages."""

import http.client
from urllib.parse import urlsplit

from support.http_server import Handler, Server

PAGE = b"<html>\r\n<head><title>%d</title></head>\r\n<body><center>nginx</center></body>\r\n</html>\r\n"
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "host", "content-length")


class Proxy:
    """A proxy that forwards requests to `target`, and refuses bodies above `limit` bytes. `seen`: methods of the requests."""

    def __init__(self, target: str, *, limit: int) -> None:
        self.target, self.limit = urlsplit(target), limit
        self.seen: list[str] = []
        self.server = Server(_handler(self))


def _handler(proxy: Proxy) -> type[Handler]:
    class Passing(Handler):
        protocol_version = "HTTP/1.1"

        def take(self) -> None:
            proxy.seen.append(self.command)
            body = self.body()
            if len(body) > proxy.limit:
                self.answer(PAGE % 413, 413, {"Content-Type": "text/html"})
                return
            upstream = http.client.HTTPConnection(proxy.target.hostname or "", proxy.target.port, timeout=20)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
            self.answer(response.read(), response.status, kept)
            upstream.close()

    return Passing
