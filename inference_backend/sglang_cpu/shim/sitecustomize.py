"""Lets SGLang's CPU server start without what only a GPU has; Python imports this first, in each process.

* `triton` compiles GPU kernels. On a CPU their definitions are evaluated at import but never launched, so any
  name of it may stand for anything (`Hollow`).
* `torchvision` comes with operators built for CUDA. Its Python part describes two of them to torch, which wants
  to have heard of them before.
* `sgl_kernel` lies beside this file and does the little that is called.

Any other program that is run with this path is left as it is: nothing is imported here, only offered.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_OPERATORS = ("nms", "qnms")
_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class Anything:
    """A class of which any instance may be made and any parameter given."""

    def __init__(self, *args: object, **options: object) -> None:
        self.value = args[0] if args else None

    def __class_getitem__(cls, item: object) -> type[Anything]:
        return cls


class Hollow(ModuleType):
    """A module that has every name: a class if capitalised, else a module that can be called as a decorator."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        inside: Any = type(name, (Anything,), {}) if name[0].isupper() else hollow(f"{self.__name__}.{name}")
        setattr(self, name, inside)
        return inside

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Act as `@jit` and as `@jit(...)`: the function stays what it was."""
        is_decorator = len(args) == 1 and not options and callable(args[0])
        return args[0] if is_decorator else lambda function: function


class Offer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds `triton` and all below it, once everybody else has been asked."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Claim the names that begin with triton."""
        if fullname.partition(".")[0] != "triton":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the one hollow module of that name."""
        return hollow(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


class BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is about to be imported; finds nothing."""

    _library: Any = None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See the class."""
        if fullname == "torchvision" and self._library is None:
            torch: Any = importlib.import_module("torch")
            self._library = torch.library.Library("torchvision", "FRAGMENT")  # gone with its last reference
            for name in _OPERATORS:
                self._library.define(name + _SCHEMA)
        return None


_offer = Offer()


def hollow(name: str) -> Hollow:
    """Return the hollow module `name`, made on first use."""
    found = sys.modules.get(name)
    if isinstance(found, Hollow):
        return found
    module = Hollow(name)
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, _offer, is_package=True)
    sys.modules[name] = module
    return module


def _arithmetic() -> None:
    """The few names of triton that are used as numbers at import."""
    triton: Any = hollow("triton")
    triton.__version__ = "0.0.0"
    triton.cdiv = lambda count, size: -(count // -size)
    triton.next_power_of_2 = lambda number: 1 << max(number - 1, 0).bit_length()
    language: Any = hollow("triton.language")
    language.constexpr = Anything
    triton.language = language


sys.meta_path.insert(0, BeforeTorchvision())
if importlib.util.find_spec("triton") is None:
    sys.meta_path.append(_offer)
    _arithmetic()
