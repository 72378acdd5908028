"""Updates as NumPy writes them, and invalid ones."""

import io
import struct
from typing import Any

import numpy as np


def npy(array: "np.ndarray[Any, Any]", **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def update(samples: int, *weights: float, dtype: str = "<f4") -> bytes:
    """Return an update of a flat model."""
    return struct.pack(">I", samples) + npy(np.array(weights, dtype))


def claiming(shape: str, *, descr: str = "<f4", data: bytes = b"") -> bytes:
    """Return an update with any header."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return struct.pack(">I", 1) + b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data
