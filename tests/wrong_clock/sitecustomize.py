"""Puts the wall clock of a process wrong by WRONG_CLOCK_S seconds, for who asks `time`; `datetime.now` stays right.

The library libfaketime would move both, but breaks `time.sleep`.
"""

import os
import time

_SHIFT_NS = int(os.environ.get("WRONG_CLOCK_S", "0")) * 10**9
_time_ns = time.time_ns


def _shifted_ns() -> int:
    return _time_ns() + _SHIFT_NS


def _shifted() -> float:
    return _shifted_ns() / 1e9


time.time_ns, time.time = _shifted_ns, _shifted
