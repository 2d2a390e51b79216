"""What outlives the process: the journal of tasks and the image files."""
