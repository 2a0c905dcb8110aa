"""Property tests have no deadline for one example: machines are shared, and the suite has its own timeout."""

from hypothesis import settings

settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
