"""ImageService, which every API and the command line use to make, read and end tasks."""
