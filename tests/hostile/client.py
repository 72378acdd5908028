"""A protocol client for tests that control every request."""

import http.client
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

ENEMY = "127.0.0.66"
"""The address of attackers. Honest participants use another one."""
NONE: Mapping[str, str] = {}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    *,
    source: str = ENEMY,
    token: str | None = None,
    timeout: float = 10,
    headers: Mapping[str, str] = NONE,
) -> Answer:
    """Send one request on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout, source_address=(source, 0))
    fields = dict(headers) if token is None else {"Authorization": f"Bearer {token}", **headers}
    try:
        connection.request(method, path, body, fields)
        with connection.getresponse() as response:
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    finally:
        connection.close()


class Client:
    """A participant with every step under the control of the test. `token` is its bearer token."""

    def __init__(
        self, coordinator: int, aggregator: int, *, name: str | None = None, token: str | None = None, source: str = ENEMY
    ) -> None:
        self.coordinator, self.aggregator = coordinator, aggregator
        self.name, self.token, self.source = name, token, source
        self.id = ""
        self.update_token = ""

    def register(self) -> Answer:
        """Register, and store the id."""
        named = NONE if self.name is None else {"Fedround-Participant": self.name}
        answer = self._ask(self.coordinator, "GET", "/rendez_vous", headers=named)
        if answer.status == 200:
            self.id = answer.json["id"]
        return answer

    def heartbeat(self, *, wait: int | None = None) -> Answer:
        """Send a heartbeat, and store the upload token if there is one. `wait`: maximum seconds of a long poll."""
        prefer = NONE if wait is None else {"Prefer": f"wait={wait}"}
        answer = self._ask(self.coordinator, "GET", f"/heartbeat/{self.id}", timeout=(wait or 0) + 10, headers=prefer)
        if answer.status == 200 and "token" in answer.json:
            self.update_token = answer.json["token"]
        return answer

    def start_training(self) -> Answer:
        """Request an upload token, and store it."""
        answer = self._ask(self.coordinator, "GET", f"/start_training/{self.id}")
        if answer.status == 200 and answer.json["ok"]:
            self.update_token = answer.json["token"]
        return answer

    def download(self) -> Answer:
        return self._ask(self.aggregator, "GET", self.update_path)

    def upload(self, update: bytes, headers: Mapping[str, str] = NONE) -> Answer:
        return self._ask(self.aggregator, "POST", self.update_path, update, timeout=30, headers=headers)

    def leave(self) -> Answer:
        return self._ask(self.coordinator, "DELETE", f"/rendez_vous/{self.id}")

    @property
    def update_path(self) -> str:
        return f"/{self.id}/{self.update_token}"

    def selected(self, attempts: int = 100) -> bool:
        """Send heartbeats until selected, at most this many. Return whether there is an upload token."""
        self.update_token = ""
        for _ in range(attempts):
            answer = self.heartbeat(wait=1)
            if answer.status == 200 and answer.json["state"] == "reject":
                self.register()
            if self.update_token:
                return True
        return False

    def _ask(
        self,
        port: int,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout: float = 10,
        headers: Mapping[str, str] = NONE,
    ) -> Answer:
        return ask(port, method, path, body, source=self.source, token=self.token, timeout=timeout, headers=headers)
