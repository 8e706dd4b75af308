"""Keras: a line ``Epoch 1/10`` and a bar below it, whose values are means over the epoch so far.

1563/1563 [==============================] - 12s 8ms/step - loss: 0.5 - accuracy: 0.8
1563/1563 ━━━━━━━━━━━━━━━━━━━━ 12s 8ms/step - accuracy: 0.8 - loss: 0.5 - val_loss: 0.6
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect

__all__ = ["KERAS"]

KERAS = Dialect(
    name="keras",
    sign=re.compile(
        r"(?<!\d)\d++/(?:\d+|Unknown) (?:\[[=>. ]*\]|[━─╸╺]+) - |(?<!\d)\d++/\d++ ━+ .*\d\w*/step"
        r"| - val_loss: "
    ),
)
