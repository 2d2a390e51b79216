"""The GPU border: one thread, behind it one worker process; only plain values cross."""
