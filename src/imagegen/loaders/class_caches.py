"""Clears caches of a library's classes, which outlive the models that filled them."""

from types import FunctionType
from typing import Any


def clear_class_caches(model: Any) -> None:
    """Clear the functools caches on the methods of a model's modules.

    diffusers' Qwen-Image keeps position tables on the device in such caches: 4 MiB for each model that was ever loaded
    and 2 MiB for each of up to 128 sizes at 1024x1024, computed from their shapes. Another loaded model of the class
    computes its tables again.
    """
    for kind in {type(module) for module in model.modules()}:
        for method in vars(kind).values():
            # A decorator of diffusers keeps the cache in its closure.
            cells = (method.__closure__ or ()) if isinstance(method, FunctionType) else ()
            for function in (method, *(cell.cell_contents for cell in cells)):
                if (clear := getattr(function, "cache_clear", None)) is not None:
                    clear()
