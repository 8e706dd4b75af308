"""The guard: every optimizer step is measured once, judged, then applied or refused."""

from surefoot.guard.guard import Guard
from surefoot.guard.policy import Policy

__all__ = ["Guard", "Policy"]
