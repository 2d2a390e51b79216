"""The one door to the tasks: every API and the command line go through ImageService."""
