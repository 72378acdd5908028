"""Which shard of a split data set is this participant's, and what the coordinator is told about it."""

import logging
import zlib
from dataclasses import dataclass

from fedround.common import wire
from fedround.participant.round import Shard

LOG = logging.getLogger(__name__)

USUAL = 10
"""The number of shards where nobody says it."""


@dataclass(frozen=True, slots=True)
class Shards:
    """What is known of the participant's shard before the coordinator says something."""

    own: Shard | None
    """Its setting."""
    count: int | None
    """The number of shards, for one without that setting. None: nobody says it, so the data set need not be split at all."""
    pod_index: int | None
    name: str

    @property
    def fixed(self) -> Shard | None:
        """The shard that it trains whatever the coordinator says, if it has one."""
        if self.own is not None:
            return Shard(self.own.index % self.own.count, self.own.count)
        if self.count is not None and self.pod_index is not None and self.pod_index < self.count:
            return Shard(self.pod_index, self.count)
        return None

    def claim(self, former: Shard | None) -> wire.Claim | None:
        """Return what it says when it registers; `former`: the shard that it trained last."""
        if (fixed := self.fixed) is not None:
            claim = wire.Claim(fixed.count, fixed.index)
        elif self.count is not None:
            claim = wire.Claim(self.count, former.index if former else None, asks=True)
        else:
            return None
        return claim if 1 < claim.count <= wire.MAX_SHARDS else None

    def find(self, told: wire.Shard | None, ordinal: int | None) -> Shard:
        """Return the shard to train: its own, the one that the coordinator tells, or else one made of a number or its name."""
        count = self.own.count if self.own else self.count or USUAL
        if self.own is None and told is not None and self.fixed is None:
            return Shard(*told)
        numbers = [self.own.index if self.own else None, self.pod_index, ordinal, zlib.crc32(self.name.encode()) % count]
        number = next(number for number in numbers if number is not None)
        if number >= count > 1:
            LOG.warning("there are %d shards: number %d wraps to %d, which others may have too", count, number, number % count)
        return Shard(number % count, count)
