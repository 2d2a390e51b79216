"""The API of imagegen itself: one file or folder for each resource, with its bodies, routes and views."""
