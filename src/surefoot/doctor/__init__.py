"""The doctor: reads the log of a run and names the cause, the evidence and the remedy."""
