"""Images: the files of finished pictures, bundles of them, and the input pictures of a body."""
