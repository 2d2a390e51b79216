"""The exceptions that mean a lack of memory. test_memory tests how they are reported to a caller."""

import errno

import pytest

from imagegen.loaders.memory_errors import out_of_memory


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OutOfMemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_known(error: Exception) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("size mismatch for x: copying a param with shape [2] from checkpoint"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        OSError(errno.ENOENT, "No such file"),
        KeyError("lora_A"),
    ],
    ids=repr,
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not out_of_memory(error)
