"""Exchanges of a participant's clients with a peer that the test controls."""

from contextlib import closing
from typing import Unpack

from fedround.common.wire import Problem, RendezVous, UpdateOutcome
from fedround.http.client import AggregatorClient, CoordinatorClient, Download
from fedround.http.exchange import Options
from support.peer import Peer, answer

ID = "3f1c9a52-7a84-4a0e-9d4a-1b1f0c8d2e61"
TOKEN = "b7d30e11-52c8-4c7b-8f0d-6a5e4c3b2a19"
STAND_BY = b'{"round":null,"state":"stand_by"}'
MIB = 1 << 20


def coordinator(peer: Peer | str, **options: Unpack[Options]) -> "closing[CoordinatorClient]":
    return closing(CoordinatorClient(peer if isinstance(peer, str) else peer.url, **options))


def aggregator(max_model_size: int = 64 * MIB, **options: Unpack[Options]) -> "closing[AggregatorClient]":
    return closing(AggregatorClient(max_model_size=max_model_size, **options))


def problem(status: str, detail: str) -> bytes:
    return answer(status, Problem(int(status[:3]), "No", detail).encode(), Content_Type=Problem.media_type)


def rendez_vous(peer: Peer | str, **options: Unpack[Options]) -> RendezVous:
    with coordinator(peer, **options) as client:
        return client.rendez_vous("ada")


def download(peer: Peer | str, *, max_model_size: int = 64 * MIB, **options: Unpack[Options]) -> Download:
    with aggregator(max_model_size, **options) as client:
        return client.download(peer if isinstance(peer, str) else peer.url, ID, TOKEN)


def upload(peer: Peer, *buffers: bytes | memoryview, metrics: str | None = None) -> UpdateOutcome | None:
    with aggregator() as client:
        return client.upload(peer.url, ID, TOKEN, buffers, metrics=metrics)
