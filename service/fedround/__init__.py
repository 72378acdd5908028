"""fedround: federated learning as a cloud-native service, with the protocol of XAIN FL 0.8.

Write a participant (`NumPyParticipant`, or `ParticipantABC` for custom formats), and run it with `run_participant` or the command
`fedround participant`. In `train_round`, `current_round()` returns the round, its configuration, the shard and more.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedround import testing as testing
    from fedround.common.evaluation import Evaluation
    from fedround.errors import (
        ConfigurationError,
        CoordinatorUnreachable,
        DeserializationError,
        FedroundError,
        ParticipantError,
        SerializationError,
        TrainingError,
        WeightsError,
    )
    from fedround.participant.abc import NumPyParticipant, ParticipantABC, Update
    from fedround.participant.proximal import proximal_gradient
    from fedround.participant.round import Round, Shard, current_round
    from fedround.participant.run import arun_participant, run_participant
    from fedround.participant.terms import Options
    from fedround.tensors.weights import flatten, unflatten

__all__ = [
    "ConfigurationError",
    "CoordinatorUnreachable",
    "DeserializationError",
    "Evaluation",
    "FedroundError",
    "NumPyParticipant",
    "Options",
    "ParticipantABC",
    "ParticipantError",
    "Round",
    "SerializationError",
    "Shard",
    "TrainingError",
    "Update",
    "WeightsError",
    "arun_participant",
    "current_round",
    "flatten",
    "proximal_gradient",
    "run_participant",
    "unflatten",
]

# Names are imported on first use: every module imports this one, and a coordinator needs neither NumPy nor httpx.
_MODULES = {
    "common.evaluation": ("Evaluation",),
    "participant.abc": ("NumPyParticipant", "ParticipantABC", "Update"),
    "participant.proximal": ("proximal_gradient",),
    "participant.round": ("Round", "Shard", "current_round"),
    "participant.run": ("arun_participant", "run_participant"),
    "participant.terms": ("Options",),
    "tensors.weights": ("flatten", "unflatten"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "testing":
        return import_module(f"{__name__}.testing")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
