"""HTTP and nothing else: routers that validate, ask a manager, and answer."""
