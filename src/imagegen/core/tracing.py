"""The trace that a request belongs to, as a plain text that tasks keep."""

from opentelemetry import trace


def current_traceparent() -> str:
    """The W3C traceparent of the span of this request; empty: traces are off, or this one is not sampled."""
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
