"""What the doctor looks for: one module per family, every rule a pure function from a run."""
