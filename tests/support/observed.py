"""The status of a federation of the real cores, as the ops ports of coordinator and aggregator show it."""

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from fedround import events
from fedround.coordinator.plan import Plan
from fedround.coordinator.rounds import Rounds
from fedround.coordinator.silos import Silos
from fedround.coordinator.status import by_name, status


def observed(*names: str, facts: Iterable[events.Fact] = (), certificate: tuple[float, float] | None = None) -> Mapping[str, Any]:
    """A coordinator's status, with participants of these names to which `facts` have happened, beside an aggregator's.

    `certificate`: validity of the client certificate of each participant.
    """
    rounds = Rounds(Plan(), Random(1))
    for name in names:
        participant = rounds.join(0.0, name, extended=True)
        assert participant is not None
        rounds.heartbeat(0.0, participant.id)
    silos = Silos(rounds.present)
    for participant in rounds.present:
        silos.note_certificate(participant.id, certificate)
    for fact in facts:
        silos.note(0.0, fact)
    return status(rounds, 0.0, silos) | by_name(rounds, silos, 0.0, 1e9, 200) | {"receiving": 2}
