"""The only helper of the engine that callers use."""


def get_precision(
    precision: str = "auto", device: object = "cuda", pretrained_model_name_or_path: object = None
) -> str:
    """`int4` or `fp4`, the one that the GPU runs."""
    return "int4" if precision == "auto" else precision
