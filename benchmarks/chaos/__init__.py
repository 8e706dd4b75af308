"""Faults on purpose: the same small task and the same faults for every way to train.

    python -m benchmarks.chaos [--quick] [--only plain,surefoot] [--faults 1,3,12b] [--jobs 2]

Each run is a process of its own, for a fault may kill it, crash it, or fill its disk. A column is
one way to train (:mod:`benchmarks.chaos.columns`), a row is one fault
(:mod:`benchmarks.chaos.faults`, :mod:`benchmarks.chaos.fears`), a cell is what became of the run
(:mod:`benchmarks.chaos.judge`). Faults strike through the data set, the model's forward pass, the
loss and the process, never through a column's own loop, so that all columns meet the same fault.

*Survived*: the process came to its end, weights and buffers are finite, and accuracy on held-out
samples is within 2 points of the same column's run without the fault. *Said what*: an error, a
warning or a record names the problem, which the run without the fault did not; a printed ``nan``
loss does not count. *Said where*: it names the step and the layer, sample, rank, file or tensor.
surefoot's columns are judged more strictly: the structured records have to give the cause that the
fault calls for, at its step, with the right tensor, sample or file.
"""
