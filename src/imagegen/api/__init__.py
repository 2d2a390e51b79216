"""The HTTP API: routers validate a request, call a service or a manager, and render the answer."""
