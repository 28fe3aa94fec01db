"""What all tests share."""

from hypothesis import settings

# Two noisy cores: how long an example takes says nothing of the code.
settings.register_profile("routereplay", deadline=None)
settings.load_profile("routereplay")
