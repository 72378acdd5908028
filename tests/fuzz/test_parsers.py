"""A short run of `make fuzz`."""

import pytest
from hypothesis import HealthCheck, given, settings

from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_parser_accepts_its_input_or_raises_our_errors(target: Target) -> None:
    with target.serving() as feed:

        @settings(max_examples=60, suppress_health_check=list(HealthCheck))
        @given(target.inputs)
        def fed(data: object) -> None:
            feed(data)

        fed()
