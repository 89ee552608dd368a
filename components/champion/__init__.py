"""Beside the champion: not worse than the release in use. The verdict alone goes on; figures stay beside the bundle."""
