"""HTTP. Routes validate a request, call a service or a manager, and make the response."""
