"""Named tensors as bytes: read and written exactly like the `safetensors` package, and everything else is refused."""

import io
import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedround.aggregator.codecs import model_of
from fedround.aggregator.updates import UpdateReader
from fedround.errors import WeightsError
from fedround.tensors.safetensors import CODES, dtype_of, parse_header
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import Array, Layout, decode, encode_model, encode_update, view_update

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name != "__metadata__")
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Array]:
    """Any mapping: every dtype, 0 to 3 dimensions, lengths of 0, names in any script."""
    found = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        dtype = dtype_of(draw(st.sampled_from(CODES)))
        shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
        found[name] = np.frombuffer(draw(st.binary(min_size=8 * 64, max_size=8 * 64)), np.uint8)
        found[name] = (found[name] % 2).astype(dtype)[: int(np.prod(shape))].reshape(shape)
    found["at least one"] = np.ones(1, "f4")
    return found


def written(weights: dict[str, Array]) -> bytes:
    return b"".join(encode_model(weights))


def same(one: dict[str, Array], other: dict[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        (a.dtype, a.shape, a.tobytes()) == (other[name].dtype, other[name].shape, other[name].tobytes()) for name, a in one.items()
    )


@given(tensors())
def test_files_equal_those_of_the_safetensors_package(weights: dict[str, Array]) -> None:
    data = written(weights)
    assert data == safetensors.numpy.save(weights)
    if BFLOAT16 not in {array.dtype for array in weights.values()}:  # the package writes it, but does not read it as NumPy arrays
        assert same(safetensors.numpy.load(data), weights)
    assert same(decode(bytearray(data)), weights)


@given(tensors(), st.integers(0, 2**32 - 1))
def test_an_update_is_a_prefix_and_the_memory_of_its_tensors(weights: dict[str, Array], samples: int) -> None:
    parts = encode_update(samples, weights)
    whole = b"".join(parts)
    assert whole == samples.to_bytes(4, "big") + written(weights)
    assert len(whole) <= len(safetensors.numpy.save(weights)) + 64
    for received in (parts, [memoryview(whole)]):
        found, seen = view_update(received)
        assert found == samples
        assert isinstance(seen, dict)
        assert same(seen, weights)
    reader = UpdateReader(whole, len(whole))
    assert (reader.samples, reader.layout) == (samples, Layout.of(weights))
    reader.check(model_of(0, {spec.name: weights[spec.name] for spec in reader.layout.tensors}))
    averaged = [spec for spec in reader.layout.tensors if spec.averaged]
    for spec, blocks in zip(averaged, reader.tensors(), strict=True):
        read = np.concatenate([block.copy() for block in blocks])
        np.testing.assert_array_equal(read, weights[spec.name].ravel().astype(read.dtype))


def test_a_received_model_is_trained_and_sent_in_the_same_memory() -> None:
    buffer = bytearray(written({"b": np.ones((2, 3), "f4"), "a": np.zeros(BLOCK + 1), "n": np.array(7), "flag": np.array([True])}))
    model = decode(buffer)
    for array in model.values():
        assert array.flags.writeable
        assert array.flags.aligned
    model["b"] += 1
    _, *data = encode_update(3, model)
    assert len(data) == 1
    assert np.shares_memory(np.frombuffer(data[0], np.uint8), np.frombuffer(buffer, np.uint8))
    assert same(decode(bytearray(buffer)), model)


def test_lists_keep_their_order() -> None:
    assert list(decode(bytearray(written({str(n): np.full(1, n, "f4") for n in range(12)})))) == [str(n) for n in range(12)]


def file(header: Any, data: bytes = bytes(8)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets} | more


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (file({"a": entry()})[:30], "ends within its header"),
        ((2**40).to_bytes(8, "little") + b"{}", "its own length as 1099511627776 bytes; the maximum is 4194304"),
        (file(b"{nonsense"), "it is not JSON"),
        (file(b'{"a":' * 9000), "it is not JSON"),
        (file(b'{"a": {"dtype": "F32"}, "a": {}}'), "the name a occurs twice"),
        (file({}), "hold no weights"),
        (file({"a": []}), "a: a tensor has dtype, shape and two data_offsets, and nothing else"),
        (file({"a": entry(more=1)}), "and nothing else"),
        (file({"": entry()}), "a tensor has a name of 1 to 512 characters"),
        (file({"x" * 513: entry()}), "a tensor has a name of 1 to 512 characters"),
        (file({"\ud800": entry()}), "the name of a tensor must be valid Unicode"),
        (file({"a\x1b[31m": entry("F8_E4M3")}), r"a\x1b[31m: dtype F8_E4M3 cannot be averaged; known are"),
        (file({"a": entry(shape=[2.0])}), "the shape is not a list of lengths"),
        (file({"a": entry(shape=[True])}), "the shape is not a list of lengths"),
        (file({"a": entry(shape=[-1])}), "the shape is not a list of lengths"),
        (file({"a": entry(shape=[2**40, 2**40])}), "the shape is not a list of lengths"),
        (file({"a": entry(shape=[1] * 33)}), "32 dimensions at most, but this one has 33"),
        (file({"a": entry(offsets=[0, 4])}), "a: F32 of shape (2,) takes 8 bytes, not those of its data_offsets"),
        (file({"a": entry(offsets=[False, 8])}), "not those of its data_offsets"),
        (file({"a": entry(offsets=[-8, 0])}), "not those of its data_offsets"),
        (file({"a": entry(offsets=[4, 12])}, bytes(12)), "the first tensor, does not begin at 0"),
        (file({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)), "the data of b does not begin where that of a ends"),
        (file({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)), "the data of b does not begin where that of a ends"),
        (file({"a": entry()}, bytes(7)), "announces 8 bytes of weights, but 7 follow it"),
        (file({"a": entry()}, bytes(9)), "announces 8 bytes of weights, but 9 follow it"),
        (file({"__metadata__": {"a": 1}, "a": entry()}), "the __metadata__ of a safetensors header must be an object of strings"),
    ],
)
def test_an_invalid_header_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(WeightsError) as refusal:
        decode(bytearray(data))
    assert message in str(refusal.value)
    with pytest.raises(WeightsError):
        UpdateReader(bytes(4) + data, 4 + len(data))


def test_the_order_of_the_data_does_not_matter_and_metadata_is_read() -> None:
    a, b = np.array([1.0, 2.0], "<f4"), np.array([3.0], "<f8")
    data = file({"__metadata__": {"by": "hand"}, "b": entry("F64", [1], [8, 16]), "a": entry()}, a.tobytes() + b.tobytes())
    assert same(decode(bytearray(data)), {"a": a, "b": b})
    assert parse_header(data).metadata == {"by": "hand"}


@given(st.binary(max_size=200), st.binary(max_size=40))
def test_hostile_headers_are_refused_as_weights_errors(text: bytes, data: bytes) -> None:
    for hostile in (file(b"{" + text, data), file(b'{"a":' + text + b"}", data), bytes(8) + b"{" + text):
        with pytest.raises(WeightsError):
            decode(bytearray(hostile))


def test_headers_of_numpy_under_python_2_are_read() -> None:
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (3L,), }".ljust(69) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + np.arange(3.0).tobytes()
    with pytest.warns(UserWarning, match="Python 2"):
        assert np.load(io.BytesIO(data)).shape == (3,)
    assert decode(bytearray(data)).tolist() == [0, 1, 2]


@pytest.mark.timeout(40)
def test_the_time_to_inspect_an_update_grows_with_the_number_of_tensors_only() -> None:
    weights = {f"layer.{number}": np.full(2, number, np.float32) for number in range(20_000)}
    _, seen = view_update(encode_update(1, weights))
    assert isinstance(seen, dict)
    assert {name: array.tolist() for name, array in seen.items()} == {name: array.tolist() for name, array in weights.items()}
