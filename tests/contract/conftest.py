"""Shared by the tests of this folder."""

import pytest


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces as usual, and runs the traces as they are: the real compiler takes ten seconds."""
    import torch
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: real(model, **how | {"backend": "eager"}))
