"""The guard inside somebody else's framework: one module for each, imported by its name.

:mod:`surefoot.integrations.lightning`, :mod:`surefoot.integrations.transformers`,
:mod:`surefoot.integrations.accelerate` and :mod:`surefoot.integrations.ultralytics`. Nothing is
imported here, so that one framework does not drag in the others.
"""
