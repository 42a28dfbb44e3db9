"""Against openpi's own encoder."""

import numpy as np
import pytest
from openpi_client import msgpack_numpy

from inference_backend import ndarray


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64", "bool", "U3", "S2", "float16"])
def test_arrays_of_openpi_are_understood(dtype):
    array = np.ones((2, 3)).astype(dtype)
    value = ndarray.unpack(msgpack_numpy.packb({"nested": [{"a": array}], "scalar": np.float32(2)}))
    assert value["nested"][0]["a"] == ndarray.array_map(array.tobytes(), array.dtype.str, [2, 3])
    assert value["scalar"][b"data"] == 2.0


def test_openpi_understands_our_arrays():
    message = ndarray.encode({"actions": ndarray.array_map(bytes(48), "<f8", (2, 3))})
    actions = msgpack_numpy.unpackb(message)["actions"]
    assert actions.shape == (2, 3) and actions.dtype == np.float64


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xc1",
        ndarray.encode({"a": ndarray.array_map(bytes(47), "<f8", (2, 3))}),
        ndarray.encode({"a": ndarray.array_map(b"", "|O", (0,))}),
        ndarray.encode({"a": ndarray.array_map(b"", "", (0,))}),
        ndarray.encode([{b"__ndarray__": True}]),
        ndarray.encode({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "<f8", b"shape": ["x"]}}),
        ndarray.encode({"a": {b"__ndarray__": True, b"data": b"", b"dtype": "<f8", b"shape": [-1, 0]}}),
    ],
)
def test_what_contradicts_itself_is_refused(message):
    with pytest.raises(ValueError):
        ndarray.unpack(message)
