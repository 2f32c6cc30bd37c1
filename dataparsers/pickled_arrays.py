"""Pickles of dictionaries and byte arrays, read without executing anything that they ask for.

A pickle is a program. The files of CIFAR were written by Python 2 and hold dictionaries, lists, strings, numbers and one numpy array
of bytes; rebuilding these takes four functions, and what stands here in their place can do nothing but hold data.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

_REBUILDS_ARRAY = {(f"numpy.{package}.multiarray", "_reconstruct") for package in ("core", "_core")}


def read_pickle(content: bytes, where: str) -> dict[str, Any]:
    """The dictionary that a pickle holds; keys and strings of Python 2 become `str` and `bytes`, arrays of bytes numpy arrays.

    Args:
        where: name of the file, for error messages.

    Raises:
        ValueError: the pickle asks for anything else than data, is damaged, or holds no dictionary.
    """
    try:
        found = _DataOnly(io.BytesIO(content), encoding="bytes").load()
    except _Refused as refused:
        raise ValueError(
            f"{where} asks for {refused}, which data have no need of and which could run code: it is refused. "
            "Download the file again from its source."
        ) from None
    except Exception as error:  # what a damaged program does has no end
        raise ValueError(
            f"{where} is truncated or is no pickle ({type(error).__name__}: {error}). Copy or download the file again."
        ) from None
    if not isinstance(found, dict):
        raise ValueError(f"{where} holds a {type(found).__name__} in the place of a dictionary. Download the file again from its source.")
    keys = [key.decode("latin-1") if isinstance(key, bytes) else str(key) for key in found]
    return {key: value.pixels if isinstance(value, _Array) else value for key, value in zip(keys, found.values())}


class _Refused(Exception):
    pass


# The unpickler written in Python: the one in C makes room for as many objects as a file claims that it will hold.
class _DataOnly(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Each answer is new: a pickle may set attributes of what it is given.
        if (module, name) in _REBUILDS_ARRAY:
            return lambda *arguments: _Array()
        if (module, name) == ("numpy", "dtype"):
            return lambda code, *arguments: _Type(code)
        if (module, name) == ("numpy", "ndarray"):
            return "ndarray"
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, *arguments: text.encode("latin-1")
        raise _Refused(f"{module}.{name}")


class _Type:
    """The place of a `numpy.dtype`."""

    def __init__(self, code: str | bytes) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing for bytes."""


class _Array:
    """The place of a numpy array of bytes."""

    pixels: np.ndarray | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, kind, is_fortran, content = state
        if kind.code != "u1":
            raise TypeError(f"an array of {kind.code} in the place of bytes")
        self.pixels = np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if is_fortran else "C")
