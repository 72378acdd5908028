"""A test of three participants on the real platform, in memory and without sockets."""

import fedround.testing

from participant import Participant


def test_three_participants_learn_together() -> None:
    with fedround.testing.platform(rounds=5, min_clients=3) as platform:
        platform.run(Participant(), Participant(), Participant(), shards=3)
    assert [round.updates for round in platform.rounds] == [3, 3, 3, 3, 3]
    assert platform.rounds[-1].evaluation["loss"] < platform.rounds[0].evaluation["loss"]
