"""The deployments, and the doors to them: command line and local server."""
