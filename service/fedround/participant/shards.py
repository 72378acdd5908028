"""The participant's shard of a split data set, and the claim for its registration."""

import logging
import zlib
from dataclasses import dataclass

from fedround.common import wire
from fedround.participant.round import Shard

LOG = logging.getLogger(__name__)

DEFAULT_COUNT = 10
"""Default number of shards."""


@dataclass(frozen=True, slots=True)
class Shards:
    """The information about the participant's shard before the coordinator assigns one."""

    configured: Shard | None
    """The shard that is set by `PARTICIPANT_SHARD`."""
    count: int | None
    """Number of shards, if no shard is set. None: unknown, and the data set may not be split."""
    pod_index: int | None
    """Index of the pod in its StatefulSet, if any."""
    name: str

    @property
    def fixed(self) -> Shard | None:
        """The shard that the coordinator cannot change; None if there is none."""
        if self.configured is not None:
            return Shard(self.configured.index % self.configured.count, self.configured.count)
        if self.count is not None and self.pod_index is not None and self.pod_index < self.count:
            return Shard(self.pod_index, self.count)
        return None

    def claim(self, former: Shard | None) -> wire.Claim | None:
        """Return the claim for the registration. `former`: the shard that was trained last."""
        if (fixed := self.fixed) is not None:
            claim = wire.Claim(fixed.count, fixed.index)
        elif self.count is not None:
            claim = wire.Claim(self.count, former.index if former else None, asks=True)
        else:
            return None
        return claim if 1 < claim.count <= wire.MAX_SHARDS else None

    def find(self, assigned: wire.Shard | None, ordinal: int | None) -> Shard:
        """Return the shard to train: the fixed one, the assigned one, or one derived from a number or from the name."""
        count = self.configured.count if self.configured else self.count or DEFAULT_COUNT
        if assigned is not None and self.fixed is None:
            return Shard(*assigned)
        numbers = [
            self.configured.index if self.configured else None,
            self.pod_index,
            ordinal,
            zlib.crc32(self.name.encode()) % count,
        ]
        number = next(number for number in numbers if number is not None)
        if number >= count > 1:
            LOG.warning(
                "there are %d shards: number %d wraps to %d, which another participant may have too", count, number, number % count
            )
        return Shard(number % count, count)
