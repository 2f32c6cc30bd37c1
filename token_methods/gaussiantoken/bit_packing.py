"""Numbers of a few bits each, one behind the other in bytes: the first number in the highest bits of the first byte."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt8

MAX_BITS = 32
_CHUNK = 1 << 16
"""Numbers unfolded into bits at a time, which takes a byte per bit. A multiple of 8, so that a chunk fills whole bytes."""


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` numbers of `bits` bits take; what is left of the last byte is zero."""
    return (count * bits + 7) // 8


def pack(numbers: Int64[np.ndarray, " n"], bits: int) -> UInt8[np.ndarray, " bytes"]:
    """Write numbers of `bits` bits each, highest bit first.

    Raises:
        ValueError: bits outside of 1..32, or a number that does not fit.
    """
    _check_bits(bits)
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < 1 << bits:
        raise ValueError(f"numbers from {numbers.min()} to {numbers.max()} do not fit into {bits} bits each")
    places = np.arange(bits - 1, -1, -1)
    chunks = (numbers[first : first + _CHUNK, None] >> places & 1 for first in range(0, numbers.size, _CHUNK))
    packed = [np.packbits(chunk.astype(np.uint8)) for chunk in chunks]
    return np.concatenate([np.empty(0, np.uint8), *packed])


def unpack(packed: UInt8[np.ndarray, " bytes"], bits: int, count: int, first: int = 0) -> Int64[np.ndarray, " n"]:
    """Numbers `first` to `first + count` of a stream; only their own bytes are looked at.

    Raises:
        ValueError: bits outside of 1..32, or a stream that ends before the last of these numbers.
    """
    _check_bits(bits)
    if packed.size < packed_size(first + count, bits):
        raise ValueError(f"{packed.size} bytes hold fewer than {first + count} numbers of {bits} bits")
    places = 1 << np.arange(bits - 1, -1, -1)
    numbers = np.empty(count, np.int64)
    for start in range(0, count, _CHUNK):
        length = min(_CHUNK, count - start)
        begin = (first + start) * bits
        unfolded = np.unpackbits(packed[begin // 8 : packed_size(first + start + length, bits)])
        numbers[start : start + length] = unfolded[begin % 8 :][: length * bits].reshape(length, bits) @ places
    return numbers


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"numbers of {bits} bits: 1 to {MAX_BITS} are possible")
