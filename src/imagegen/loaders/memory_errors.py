"""Which exceptions say that the memory did not suffice."""

import errno

#: Words of libraries that found no memory: torch's allocators on the GPU and on the CPU, then cuBLAS and cuDNN, which
#: need some of their own (cublas_v2.h, cudnn_graph.h, ATen/native/cudnn). Where it was no lack of memory, the context
#: is broken, which `context_works` finds out, or the second attempt fails with more memory free.
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
    """Whether the memory of the device, or of this process, did not suffice."""
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"
        or any(it in words for it in OUT_OF_MEMORY)
    )
