"""A participant's connections, for `run_participant` and the service. This module does not import NumPy."""

import random
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from urllib.parse import urlsplit

from fedround.events import Observer
from fedround.http import hosts
from fedround.http.bodies import Sink
from fedround.http.client import AggregatorClient, CoordinatorClient
from fedround.http.exchange import Options, Trace
from fedround.http.tls import Context
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
    make_sink: Callable[[], Sink] | None = None,
    transport: Transport | None = None,
    pod_index: int | None = None,
    trace: Trace | None = None,
    beat: Callable[[float], None] = lambda _within: None,
    current_phase: Callable[[], str] = str,
    on_tls: Callable[[Context | None], object] = lambda _context: None,
) -> Iterator[Runtime]:
    """Yield a participant that is ready to run, with its connections open.

    Args:
        trainer: Runs the training code.
        coordinator_url: URL of the coordinator, such as `http://localhost:8081`.
        terms: Options of the participant.
        observe: Called with every fact.
        make_sink: Creates the memory in which `trainer` takes a model. Default: memory of this process.
        transport: Replaces sockets.
        pod_index: Index of this pod in its StatefulSet.
        trace: Wraps each request in a span.
        beat: Called when the loop makes progress, with the maximum seconds until it does again.
        current_phase: Returns the participant's phase in a round, one of `wire.PHASES`, or an empty string.
        on_tls: Called with the TLS context of the connections; None: the default.

    Raises:
        ConfigurationError: A URL, a certificate or a proxy cannot be used.
    """
    configured = None if terms.shard is None else Shard(*terms.shard)
    tls = client_tls(terms.tls_ca_file, terms.tls_cert_file, terms.tls_key_file)
    on_tls(tls)
    allow = [*terms.aggregator_allow, *filter(None, [urlsplit(terms.aggregator_url or "").hostname])]
    trusting = Options(trusted=partial(hosts.trusted, coordinator_url=coordinator_url, allow=allow))
    both = Options(token=terms.token, tls=tls, observe=observe, transport=transport, trace=trace)
    with (
        closing(CoordinatorClient(coordinator_url, **both)) as coordinator,
        closing(AggregatorClient(max_model_size=terms.max_model_size, make_sink=make_sink, **both | trusting)) as aggregator,
    ):
        yield Runtime(
            trainer,
            coordinator,
            aggregator,
            # A private generator: training code may seed the module's, and then all participants have the same delays.
            Lifecycle(terms, random.Random().random),
            name=terms.name,
            shards=Shards(configured, terms.shards, pod_index, terms.name),
            observe=observe,
            aggregator_url=terms.aggregator_url,
            beat=beat,
            current_phase=current_phase,
        )
