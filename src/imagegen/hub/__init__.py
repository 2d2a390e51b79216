"""Getting weights from the hub: what to fetch, the process that fetches it, and who decides when."""
