"""What is on disk: the journal, with tasks, keys and deliveries, and the files of pictures."""
