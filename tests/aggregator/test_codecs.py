import numpy as np
import pytest

from fedround.aggregator.codecs import OPAQUE, OpaqueUpdate, opaque_model, read_model
from fedround.errors import WrongWeights
from fedround.tensors.values import BLOCK
from support.updates import npy


def test_a_stored_model_is_sent_unchanged() -> None:
    array = npy(np.array([1.5, 2.5]))
    assert b"".join(read_model(7, memoryview(bytearray(array))).buffers) == array
    assert b"".join(opaque_model(7, memoryview(b"anything")).buffers) == b"anything"


def test_models_of_one_round_with_different_bytes_have_different_etags() -> None:
    one, other = (opaque_model(7, memoryview(data)) for data in (b"one", b"other"))
    assert one.etag != other.etag
    assert one.etag.startswith('"7-')
    assert opaque_model(None, memoryview(b"one")).etag.startswith('"initial-')


def test_a_model_of_bytes_has_an_unknown_number_of_weights() -> None:
    model = opaque_model(7, memoryview(b"anything"))
    assert model.parameters == 0
    assert model.tensors[0].nbytes == 8


def test_an_opaque_update_is_a_sample_count_followed_by_bytes() -> None:
    body = np.random.default_rng(0).bytes(2 * BLOCK + 1)
    update = OpaqueUpdate(bytearray(b"\0\0\1\2" + body), 4 + len(body))
    update.check()
    OPAQUE.check(update.layout)
    assert update.samples == 258
    assert b"".join(block.tobytes() for tensor in update.tensors() for block in tensor) == body


@pytest.mark.parametrize("size", [0, 3, 4])
def test_an_opaque_update_without_bytes_is_refused(size: int) -> None:
    with pytest.raises(WrongWeights, match=f"a sample count of 4 bytes and a model, but this one has {size} bytes"):
        OpaqueUpdate(bytearray(size), size)
