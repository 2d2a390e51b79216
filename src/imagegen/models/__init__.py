"""Which models are in device memory, what is known of them, and which of them must leave."""
