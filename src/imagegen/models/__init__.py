"""What is resident in device memory, and who must leave."""
