"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# No test asserts a time, hypothesis's own included: machines that test are busy.
settings.register_profile("freezeframe", deadline=None, print_blob=True)
settings.load_profile("freezeframe")
