"""Tensors of the CPU that native code takes for a GPU's: what it reads of a tensor says so.

DLPack's table of functions (csrc/dlpack.h) is wrapped, so the walk sorts such tensors by their device. Nobody
may look at what is in them.
"""

import ctypes
from collections.abc import Callable, Iterable
from typing import Any

import torch

from grokfused import backends
from grokfused.backends import native
from grokfused.step.members import with_grads
from grokfused.step.policy import policies_of

CPU, CUDA = (1, 0), [(2, index) for index in range(2)]  # (type, index), as DLPack has them
NAME = b"dlpack_exchange_api"


class DLTensor(ctypes.Structure):
    """How a tensor is read."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    ]


READ = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.POINTER(DLTensor))


class Exchange(ctypes.Structure):
    """The table of functions, as far as it is used."""

    _fields_ = [
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("others", ctypes.c_void_p * 4),
        ("read", READ),
        ("stream", ctypes.c_void_p),
    ]


class ActedDevices:
    """Where native code finds tensors: on the CPU, but for those that were ``put`` elsewhere."""

    def __init__(self) -> None:
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype = ctypes.py_object
        capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        real = Exchange.from_address(pointer(torch.Tensor.__dlpack_c_exchange_api__, NAME))
        assert real.major == 1
        self._places: dict[int, tuple[int, int]] = {}
        self._table = Exchange(real.major, real.minor, read=READ(self._reading(real.read)))
        self.exchange = capsule(ctypes.addressof(self._table), NAME, None)

    def _reading(self, read: Any) -> Callable[[Any, Any], int]:
        def acted(tensor: Any, found: Any) -> int:
            code = read(tensor, found)
            place = self._places.get(tensor.data_ptr(), CPU)
            found[0].device_type, found[0].device_id = place
            return int(code)

        return acted

    def put(self, tensors: Iterable[torch.Tensor], place: tuple[int, int]) -> None:
        """Lets native code find tensors on a device."""
        for tensor in tensors:
            self._places[tensor.data_ptr()] = place

    def walk(self, optimizer: Any, monkeypatch: Any, choose: Callable[..., str]) -> Any:
        """Returns the walk over an optimizer's parameters; ``choose`` stands for ``backends.choose_for``."""
        assert backends.native_table() is not None
        monkeypatch.setattr(native, "_exchange", self.exchange)
        monkeypatch.setattr(native, "choose_for", choose)
        table = native.new_table(lambda tensor: torch._C._dispatch_keys(tensor).raw_repr())
        members = with_grads(optimizer)
        return table.walk(members, *policies_of(members.groups, optimizer.decay, False), None, ("cuda",))
