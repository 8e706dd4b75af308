"""Lightning's progress bar; its CSV has gaps, which every CSV may have.

Epoch 0:  12%|█▏        | 120/1000 [00:10<01:20, 11.00it/s, v_num=0, train_loss_step=2.1]
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect

__all__ = ["LIGHTNING"]

LIGHTNING = Dialect(
    name="lightning", sign=re.compile(r"\bv_num=|\"(?:train|val)_loss_(?:step|epoch)\": ")
)
