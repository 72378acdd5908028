"""A participant with its connections open: what `run_participant` and the service have in common. No NumPy."""

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from urllib.parse import urlsplit

from fedround.events import Observer
from fedround.http import hosts
from fedround.http.bodies import Room
from fedround.http.client import AggregatorClient, CoordinatorClient
from fedround.http.exchange import Options, Trace
from fedround.http.transport import Transport
from fedround.http.transport import tls as client_tls
from fedround.participant.lifecycle import Lifecycle
from fedround.participant.peers import Trainer
from fedround.participant.round import Shard
from fedround.participant.runtime import Runtime
from fedround.participant.shards import Shards
from fedround.participant.terms import Terms


@contextmanager
def connected(
    trainer: Trainer,
    coordinator_url: str,
    terms: Terms,
    observe: Observer,
    *,
    room: Callable[[], Room] | None = None,
    transport: Transport | None = None,
    pod_index: int | None = None,
    trace: Trace | None = None,
    beat: Callable[[float], None] = lambda _within: None,
    doing: Callable[[], str] = str,
) -> Iterator[Runtime]:
    """A participant that is ready to run, with its connections open.

    Args:
        trainer: Runs the participant's own code.
        coordinator_url: Such as `http://localhost:8081`.
        terms: The options.
        observe: Is told of every fact.
        room: Makes what `trainer` takes a model in; by default this process's own memory.
        transport: In place of sockets.
        pod_index: The number of this pod in its StatefulSet.
        trace: Surrounds each request.
        beat: Is called whenever the loop turns, with the seconds until it will again.
        doing: Returns what the participant does in a round, one of `wire.PHASES`, or nothing.

    Raises:
        ConfigurationError: A URL, a certificate or a proxy cannot be used.
    """
    own = None if terms.shard is None else Shard(*terms.shard)
    tls = client_tls(terms.tls_ca_file, terms.tls_cert_file, terms.tls_key_file)
    allow = [*terms.aggregator_allow, *filter(None, [urlsplit(terms.aggregator_url or "").hostname])]
    trusting = Options(trusted=partial(hosts.trusted, coordinator_url=coordinator_url, allow=allow))
    both = Options(token=terms.token, tls=tls, observe=observe, transport=transport, trace=trace)
    with (
        closing(CoordinatorClient(coordinator_url, **both)) as coordinator,
        closing(AggregatorClient(max_model_size=terms.max_model_size, room=room, **both | trusting)) as aggregator,
    ):
        yield Runtime(
            trainer,
            coordinator,
            aggregator,
            # Random numbers of our own: code that seeds the module's would give all participants the same delays.
            Lifecycle(terms, random.Random().random),
            name=terms.name,
            shards=Shards(own, terms.shards, pod_index, terms.name),
            observe=observe,
            aggregator_url=terms.aggregator_url,
            beat=beat,
            doing=doing,
        )
