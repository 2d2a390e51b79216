"""Caches that belong to a library's classes and would outlive the models that filled them."""

from types import FunctionType
from typing import Any


def clear_class_caches(model: Any) -> None:
    """Empty the functools caches of the methods of a model's modules.

    diffusers' Qwen-Image keeps position tables in such caches, on the device: 4 MiB for each model that was ever loaded
    and 2 MiB for each of up to 128 sizes at 1024x1024, computed from their shapes. Another loaded model of the class
    makes its tables again.
    """
    for kind in {type(module) for module in model.modules()}:
        for method in vars(kind).values():
            # A wrapper of diffusers' own hides the cache among the variables that it uses.
            cells = (method.__closure__ or ()) if isinstance(method, FunctionType) else ()
            for function in (method, *(cell.cell_contents for cell in cells)):
                if (clear := getattr(function, "cache_clear", None)) is not None:
                    clear()
