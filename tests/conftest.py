"""Settings all tests share."""

from hypothesis import settings

# Same examples on every run, and no time limit per example: the first one may compile a kernel,
# and pytest has a timeout for each test.
settings.register_profile("rollout", deadline=None, derandomize=True)
settings.load_profile("rollout")
