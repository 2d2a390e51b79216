"""Recognises the exceptions that mean a lack of memory."""

import errno

#: Texts in the errors of libraries that could not allocate memory: torch's allocators on the GPU and on the CPU, then
#: cuBLAS and cuDNN, which allocate for themselves (cublas_v2.h, cudnn_graph.h, ATen/native/cudnn). If the cause was
#: another one, either the CUDA context is broken, which `context_works` detects, or the second attempt fails although
#: more memory is free.
OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "alloc_failed",
    "allocation_failed",
    "cublas_status_not_initialized",
    "cudnn_status_not_initialized",
    "unable to find an engine",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether the device or this process ran out of memory."""
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or any(it in words for it in OUT_OF_MEMORY)
    )
