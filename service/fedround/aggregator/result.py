"""The global model, assembled from the strategies' results, rounded once, and from the tensors that are not averaged."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fedround.aggregator.codecs import Model, model_of
from fedround.common.books import NO_RUN, Run
from fedround.errors import WrongWeights
from fedround.tensors.safetensors import shown
from fedround.tensors.values import BLOCK, unfit, widened
from fedround.tensors.weights import Array, Layout, Spec

REAL = "biuf"
"""Kinds of dtypes that a strategy may return."""


def _shown(returned: object) -> str:
    """Return the dtype or the type of a strategy's result, for messages."""
    return str(returned.dtype) if isinstance(returned, np.ndarray) else type(returned).__name__


def assembled(
    round: int, layout: Layout, results: Iterator[Array], before: Model | None, fixed: Mapping[str, Array], run: Run = NO_RUN
) -> Model:
    """Return the model of a round.

    Args:
        round: The number of the round.
        layout: The layout of the training.
        results: Each averaged tensor, flat, in the dtype `Spec.result`.
        before: The model that the round began with. Its constants stay: see `fedround.tensors.values`.
        fixed: The tensors that are not floats, from that model or the first update.
        run: The run of the round, for the metadata.

    Raises:
        WrongWeights: A result has the wrong size, is not finite, or does not fit into its dtype.
    """
    metadata = {"fedround.run": run.name, "fedround.run_id": run.id} if run.id else {}
    if not layout.named:
        (spec,), (array,) = layout.tensors, results
        result = _checked(array, spec)
        return model_of(round, result.astype(spec.dtype, copy=False).reshape(spec.shape), metadata)
    data, start = np.empty(layout.nbytes, np.uint8).data, 0
    tensors: dict[str, Array] = {}
    for number, spec in enumerate(layout.tensors):
        tensor = np.ndarray(spec.shape, spec.dtype, data, start)
        flat, start = tensor.reshape(-1), start + spec.nbytes
        if spec.averaged:
            _store(_checked(next(results), spec), flat, fixed.get(spec.name))
            if before is not None and spec.floating:
                _keep_constants(before.tensors[number].reshape(-1), flat)
        elif spec.count:
            flat[:] = fixed[spec.name].reshape(-1)
        tensors[spec.name] = tensor
    next(results, None)  # lets the generator release its resources
    return model_of(round, tensors, metadata)


def _checked(result: Any, spec: Spec) -> Array:
    """Return `result`. Raises `WrongWeights` if it has the wrong size or a value that is not finite."""
    where = f"{shown(spec.name)}: " if spec.name else ""
    if not isinstance(result, np.ndarray) or result.dtype.kind not in REAL:
        raise WrongWeights(f"{where}the strategy returned {_shown(result)} instead of an array of numbers")
    if result.shape != (spec.count,):
        raise WrongWeights(f"{where}the strategy returned shape {result.shape} instead of {(spec.count,)}")
    for start in range(0, result.size, BLOCK):
        if not np.isfinite(result[start : start + BLOCK]).all():
            if np.isnan(result[start : start + BLOCK]).any():
                raise WrongWeights(f"{where}the result has NaN")
            raise WrongWeights(f"{where}the result does not fit into {spec.result.str}: train with a wider dtype")
    return result


def _store(result: Array, out: Array, fixed: Array | None) -> None:
    """Round a result into `out`, to nearest even. Integers are clipped to the range of their dtype."""
    for start in range(0, result.size, BLOCK):
        block, part = result[start : start + BLOCK], out[start : start + BLOCK]
        if out.dtype.kind == "f":
            part[:] = block
        elif out.dtype.kind in "iu":
            _store_integers(block, part, None if fixed is None else fixed.reshape(-1)[start : start + BLOCK])
        else:
            part.view(np.uint16)[:] = bfloat16_bits(block)


def _store_integers(block: Array, out: Array, fixed: Array | None) -> None:
    limits = np.iinfo(out.dtype)
    rounded = np.rint(block)
    # As floats, the limits may be just beyond the range of the integers.
    large, small = rounded >= float(limits.max), rounded <= float(limits.min)
    rounded[large | small] = 0
    out[:] = rounded.astype(out.dtype)
    out[large], out[small] = limits.max, limits.min
    if fixed is not None:  # copy unchanged integers, because float64 may lack digits of large ones
        np.copyto(out, fixed, where=rounded == fixed.astype(np.float64))


def bfloat16_bits(numbers: Array) -> Array:
    """Return the bits of float64 `numbers` as bfloat16, rounded once, to nearest even.

    The intermediate float32 is rounded to odd, which makes the second rounding correct (Boldo and Melquiond, "Emulation of FMA
    and correctly rounded sums", IEEE Trans. Computers 57, 2008).
    """
    with np.errstate(over="ignore"):
        single = numbers.astype(np.float32)
    wide = single.astype(np.float64)
    single = np.where(np.abs(wide) > np.abs(numbers), np.nextafter(single, np.float32(0)), single)
    bits: Array = single.view(np.uint32)
    bits = bits | (single.astype(np.float64) != numbers)
    bits = (bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return bits.astype(np.uint16)


def _keep_constants(before: Array, out: Array) -> None:
    for start in range(0, out.size, BLOCK):
        block = before[start : start + BLOCK]
        if (mask := unfit(widened(block))) is not None:
            out[start : start + BLOCK][mask] = block[mask]
