"""The weighted sum of anchors as one loop in C, if it could be built when the package was installed."""

from __future__ import annotations

import ctypes
import struct
from importlib.util import find_spec

import torch

from taylorseer.predictors import MAX_ORDER

_PACK = [struct.Struct(f"{count}f").pack for count in range(MAX_ORDER + 2)]


def _load() -> dict[torch.dtype, ctypes._NamedFuncPointer]:
    """The function for each dtype.

    torch must be loaded before the library, which then shares its OpenMP runtime and its threads.
    """
    built = find_spec("taylorseer._cpu_kernel")
    if built is None or built.origin is None:
        raise ImportError("it was not built: there was no C compiler with OpenMP when the package was installed")
    library = ctypes.CDLL(built.origin)
    functions = {torch.float32: library.weighted_sum_float32, torch.bfloat16: library.weighted_sum_bfloat16}
    address = ctypes.c_void_p
    for function in functions.values():
        function.argtypes = [address, ctypes.c_char_p, ctypes.c_int, address, ctypes.c_int64, ctypes.c_int]
        function.restype = None
    return functions


_FUNCTIONS = _load()
DTYPES = frozenset(_FUNCTIONS)


def weighted_sum(slots: torch.Tensor, weights: list[float], out: torch.Tensor) -> torch.Tensor:
    """sum_j weights[j] * slots[j], accumulated in float32, on as many threads as torch uses.

    Args:
        slots: (slot, *feature), of one of DTYPES, contiguous, on the CPU.
        weights: one per slot, at most MAX_ORDER + 1, not all 0; slots of weight 0 are not read.
        out: (*feature) in the dtype of the slots, contiguous: memory for the sum.

    Returns:
        `out`.

    Raises:
        ValueError: the memory is not as described above, so that the loop would read or write outside it or write
            nothing.
    """
    # Only addresses and numbers are passed: making a tensor for each slot would cost as much as everything else here.
    count, numel = len(weights), out.numel()
    whole = slots.is_contiguous() and out.is_contiguous() and out.dtype is slots.dtype and out.device == slots.device
    if not whole or slots.numel() != count * numel or not any(weights):
        raise ValueError(
            f"{count} weights, slots {tuple(slots.shape)} {slots.dtype} and out {tuple(out.shape)} {out.dtype} on "
            f"{out.device} do not fit together: must be contiguous and of one dtype, with a weight for each slot, not "
            "all of them 0"
        )
    sum_of = _FUNCTIONS[slots.dtype]
    sum_of(slots.data_ptr(), _PACK[count](*weights), count, out.data_ptr(), numel, torch.get_num_threads())
    return out
