"""The guard: every optimizer step is measured once, judged, then applied or refused."""

from surefoot.guard.attach import Attachment, attach
from surefoot.guard.guard import Guard
from surefoot.guard.policy import Policy

__all__ = ["Attachment", "Guard", "Policy", "attach"]
