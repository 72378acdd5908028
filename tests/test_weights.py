import io
import tracemalloc
from io import FileIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedround.aggregator.codecs import model_of
from fedround.aggregator.updates import UpdateReader
from fedround.errors import NotFinite, WeightsError, WrongWeights
from fedround.tensors.statistics import LARGEST_WEIGHT
from fedround.tensors.values import BLOCK
from fedround.tensors.weights import (
    Array,
    Layout,
    Spec,
    decode,
    encode_model,
    encode_update,
    flatten,
    parse_head,
    result_dtype,
    unflatten,
    view_update,
)

DTYPES = [f"{order}{kind}" for kind in ("f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8") for order in "<>"] + ["i1", "u1"]


@st.composite
def weights(draw: st.DrawFn) -> Array:
    """Any array of weights: every dtype and byte order, 0 to 4 dimensions, C, Fortran or no order."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=5))
    array: Array = draw(hnp.arrays(dtype, shape))
    match draw(st.sampled_from(["C", "F", "strided"])):
        case "F":
            return np.asfortranarray(array).reshape(shape, order="F")
        case "strided":
            return np.repeat(array, 2, axis=-1)[..., ::2] if array.ndim else array
    return array


def npy(header: str, *, version: bytes = b"\x01\x00", data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2 if version[0] == 1 else 4, "little") + text + data


def blocks(reader: UpdateReader) -> list[Array]:
    return [block.copy() for tensor in reader.tensors() for block in tensor]


def body(array: Array, samples: int = 1) -> bytes:
    return b"".join(encode_update(samples, array))


@given(weights())
def test_a_model_is_encoded_like_numpy_save(array: Array) -> None:
    expected = io.BytesIO()
    np.save(expected, array, allow_pickle=False)
    assert b"".join(encode_model(array)) == expected.getvalue()


@given(weights())
def test_a_model_survives_the_round_trip(array: Array) -> None:
    decoded = decode(bytearray(b"".join(encode_model(array))))
    assert isinstance(decoded, np.ndarray)
    assert decoded.dtype == array.dtype.newbyteorder("=")
    assert decoded.flags.writeable
    np.testing.assert_array_equal(decoded, array)


@given(weights(), st.integers(0, 2**32 - 1))
def test_an_update_is_read_back_in_c_order(array: Array, samples: int) -> None:
    data = body(array, samples)
    reader = UpdateReader(data, len(data))
    assert (reader.samples, reader.layout) == (samples, Layout.of(array))
    np.testing.assert_array_equal(np.concatenate(blocks(reader)), array.ravel())


@pytest.mark.parametrize("order", ["C", "F"])
def test_an_update_in_a_file_is_read_in_blocks(tmp_path: Path, order: Any) -> None:
    array = np.arange(2.0 * BLOCK + 6).reshape(2, -1).copy(order=order)
    path = tmp_path / "update"
    path.write_bytes(body(array))
    with FileIO(path) as file:
        read = blocks(UpdateReader(file, path.stat().st_size))
    assert [block.size for block in read] == [BLOCK, BLOCK, 6]
    np.testing.assert_array_equal(np.concatenate(read), array.ravel())


def test_a_truncated_file_is_not_read_forever(tmp_path: Path) -> None:
    path = tmp_path / "update"
    path.write_bytes(body(np.arange(1000.0)))
    with FileIO(path, "r+") as file:
        reader = UpdateReader(file, path.stat().st_size)
        file.truncate(500)
        with pytest.raises(WrongWeights, match="was truncated"):
            blocks(reader)


def test_decoding_and_encoding_copy_nothing() -> None:
    array = np.arange(5.0)
    header, data = encode_model(array)
    assert np.shares_memory(np.frombuffer(data, np.uint8), array)
    buffer = bytearray(bytes(header) + bytes(data))
    decoded = decode(buffer)
    assert np.shares_memory(decoded, np.frombuffer(buffer, np.uint8))
    decoded[0] = 7
    assert decode(buffer)[0] == 7


def test_a_read_only_buffer_is_decoded_to_a_writable_copy() -> None:
    decoded = decode(b"".join(encode_model(np.arange(3.0))))
    decoded[0] = 7


def test_a_header_has_128_bytes_and_version_1_as_in_0_8() -> None:
    header, _ = encode_model(np.arange(5.0))
    assert (len(header), bytes(header[:8])) == (128, b"\x93NUMPY\x01\x00")


@pytest.mark.parametrize("version", [b"\x02\x00", b"\x03\x00"])
def test_later_versions_of_the_format_are_read(version: bytes) -> None:
    data = npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,)}", version=version, data=bytes(8))
    assert decode(data).shape == (1,)


HEADER = "{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}}}"


def header(descr: str = "'<f8'", fortran: str = "False", shape: str = "(2,)") -> bytes:
    return npy(HEADER.format(descr=descr, fortran=fortran, shape=shape), data=bytes(16))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "neither an .npy array nor safetensors"),
        (b"<!DOCTYPE html>", "neither an .npy array nor safetensors: it begins with b'<!DOC"),
        (b"\x93NUMPY", "ends within its header"),
        (npy("", version=b"\x09\x00"), "version 9.0; versions 1.0 to 3.0 are supported"),
        (b"\x93NUMPY\x01\x00\xff\xff", "its own length as 65535 bytes"),
        (header()[:40], "ends within its header"),
        (npy("['descr']"), "not a dictionary"),
        (npy("{'descr': '<f8'}"), "not a dictionary"),
        (npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'more': 1}"), "not a dictionary"),
        (npy("__import__('os').getcwd()"), "not a dictionary"),
        (npy("(" * 5000), "not a dictionary"),
        (npy("\x00\x01"), "not a dictionary"),
        (header(descr="'|O'"), "objects are pickled, which is never accepted"),
        (header(descr="'<f16'"), "dtype '<f16' cannot be averaged; use float16, float32, float64 or integers"),
        (header(descr="'<c16'"), "cannot be averaged"),
        (header(descr="'?'"), "cannot be averaged"),
        (header(descr="'<U8'"), "cannot be averaged"),
        (header(descr="'|V8'"), "cannot be averaged"),
        (header(descr="'nonsense'"), "cannot be averaged"),
        (header(descr="[('a', '<f8')]"), "cannot be averaged"),
        (header(descr="'T'"), "cannot be averaged"),
        (header(descr="0x" + "f" * 9000), "not a dictionary"),
        (header(shape=f"(0x{'f' * 9000},)"), "not a dictionary"),
        (header(shape="2"), "shape '2' is invalid"),
        (header(shape="(-1,)"), "is invalid"),
        (header(shape="(True,)"), "is invalid"),
        (header(shape="(2.0,)"), "is invalid"),
        (header(shape=f"({2**70},)"), "is invalid"),
        (header(shape=str((1,) * 65)), "32 dimensions at most, but these have 65"),
        (header(shape="(0,)"), "holds no weights"),
        (header(fortran="0"), "neither True nor False"),
        (header(shape="(3,)"), "announces 24 bytes of weights, but 16 follow it"),
        (header(shape="(1,)"), "announces 8 bytes of weights, but 16 follow it"),
    ],
)
def test_invalid_bytes_are_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(WeightsError) as refusal:
        decode(data)
    assert message in str(refusal.value)


@given(st.binary(max_size=300))
def test_hostile_bytes_are_refused_as_weights_errors(data: bytes) -> None:
    for hostile in (data, b"\x93NUMPY" + data, b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data):
        with pytest.raises(WeightsError):
            decode(hostile)
        with pytest.raises(WeightsError):
            UpdateReader(hostile, len(hostile))


def test_nothing_is_allocated_for_a_size_that_a_header_claims() -> None:
    claim = header(shape="(1000000, 1000000)")
    tracemalloc.start()
    try:
        with pytest.raises(WrongWeights, match="announces 8000000000000 bytes"):
            decode(claim)
        with pytest.raises(WrongWeights):
            UpdateReader(bytes(4) + claim, 4 + len(claim))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_an_update_shorter_than_its_sample_count_is_refused() -> None:
    with pytest.raises(WrongWeights, match="sample count of 4 bytes, but this one has 3 bytes"):
        UpdateReader(bytes(3), 3)


@pytest.mark.parametrize("samples", [-1, 2**32])
def test_a_sample_count_must_fit_four_bytes(samples: int) -> None:
    with pytest.raises(WrongWeights, match="from 0 to"):
        encode_update(samples, np.arange(2.0))


@given(weights(), st.booleans())
def test_an_encoded_update_can_be_inspected_without_a_copy(array: Array, joined: bool) -> None:
    parts = [memoryview(part) for part in encode_update(7, array)]
    parts = [memoryview(b"".join(parts))] if joined else parts
    samples, seen = view_update(parts)
    assert samples == 7
    assert isinstance(seen, np.ndarray)
    assert seen.dtype.newbyteorder("=") == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(seen, array)
    assert np.shares_memory(seen, np.frombuffer(parts[-1], np.uint8))


@pytest.mark.parametrize(
    "weights", [[b"opaque"], [b""], [body(np.ones(3))[4:-1]], [body(np.ones(3))[4:], b"more"], [body(np.ones(3))[4:-8], bytes(8)]]
)
def test_only_the_samples_of_another_encoding_can_be_inspected(weights: list[bytes]) -> None:
    parts = [memoryview(part) for part in ((7).to_bytes(4, "big"), *weights)]
    assert view_update(parts) == (7, None)


@pytest.mark.parametrize("dtype", ["c16", "O", "?", "i4,f4"])
def test_arrays_with_other_dtypes_are_not_encoded(dtype: str) -> None:
    with pytest.raises(WeightsError, match="cannot be averaged"):
        encode_model(np.zeros(2, dtype))


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_found_wherever_they_are(dtype: str, bad: float) -> None:
    for position in (0, BLOCK + 1):
        array = np.ones(BLOCK + 2, dtype)
        array[position] = bad
        data = body(array)
        with pytest.raises(NotFinite, match=f"weights: (NaN|infinity) in 1 of {BLOCK + 2} elements: has training diverged"):
            UpdateReader(data, len(data)).check()


@pytest.mark.parametrize("array", [np.array([1.0, -2 * LARGEST_WEIGHT]), np.array([1, 1e38], "f4"), np.array([1, -(2**62)])])
def test_weights_too_large_to_train_with_are_found(array: Array) -> None:
    data = body(array)
    with pytest.raises(NotFinite, match=r"weights: magnitudes above 1e\+15 in 1 of \d elements"):
        UpdateReader(data, len(data)).check()


def test_integers_and_ordinary_floats_are_fine() -> None:
    for array in (np.array([10**15], "u8"), np.array([-LARGEST_WEIGHT, 0, LARGEST_WEIGHT]), np.array([65504], "f2")):
        data = body(array)
        UpdateReader(data, len(data)).check()


@given(weights(), st.integers(0, 2**32))
def test_a_check_measures_what_an_update_changes(array: Array, seed: int) -> None:
    model = np.asarray(np.random.default_rng(seed).normal(size=array.shape))
    data = body(array)
    try:
        found = UpdateReader(data, len(data)).check(model_of(0, model))
    except NotFinite:
        assert not (np.abs(array.astype("f8")) <= LARGEST_WEIGHT).all()
    else:
        assert found == pytest.approx(np.linalg.norm((array.astype("f8") - model).ravel()), rel=1e-9)


def test_without_a_model_a_check_measures_the_weights_themselves() -> None:
    data = body(np.array([3.0, 4.0], "f4"))
    assert UpdateReader(data, len(data)).check() == 5.0


@pytest.mark.parametrize("order", ["C", "F"])
def test_weights_with_too_many_dimensions_are_refused(order: Literal["C", "F"]) -> None:
    most, more = (np.ones((1,) * (n - 1) + (4,), order=order) for n in (32, 33))
    data = body(most)
    assert UpdateReader(data, len(data)).check() == 2.0
    with pytest.raises(WrongWeights, match="weights have 32 dimensions at most, but these have 33"):
        encode_update(1, more)
    data = b"\0\0\0\1" + npy(f"{{'descr': '<f8', 'fortran_order': {order == 'F'}, 'shape': {more.shape}}}", data=more.tobytes())
    with pytest.raises(WrongWeights, match="32 dimensions at most"):
        UpdateReader(data, len(data))


def test_an_update_must_have_the_layout_of_the_training() -> None:
    data = body(np.ones(4, ">f4"))
    reader = UpdateReader(data, len(data))
    Layout.of(np.ones(4, "<f4")).check(reader.layout)
    for other in (np.ones(4, "<f8"), np.ones((2, 2), "<f4")):
        with pytest.raises(WrongWeights, match=r"float32 weights of shape \(4,\), but the global model has float"):
            Layout.of(other).check(reader.layout)


@pytest.mark.parametrize(("dtype", "result"), [("f2", "<f2"), (">f4", "<f4"), (">f8", "<f8"), ("i1", "<f8"), ("u8", "<f8")])
def test_narrow_floats_stay_and_other_dtypes_become_float64(dtype: str, result: str) -> None:
    assert result_dtype(np.dtype(dtype)).str == result
    assert parse_head(encode_model(np.ones(3, dtype))[0]).layout == Layout((Spec(np.dtype(result), (3,)),))


def test_lists_of_arrays_can_be_flattened_and_restored() -> None:
    arrays = [np.arange(6.0).reshape(2, 3), np.array(7.0), np.arange(2, dtype="f4")]
    flat = flatten(arrays)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 0, 1]
    for back, array in zip(unflatten(flat, like=arrays), arrays, strict=True):
        assert (back.dtype, back.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(back, array)


def test_a_flat_model_of_another_size_cannot_be_restored() -> None:
    with pytest.raises(WrongWeights, match="expected 4 weights, but got 3"):
        unflatten(np.arange(3.0), like=[np.zeros((2, 2))])
