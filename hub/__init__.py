"""The hub: versions, ledger, aggregation, public data, broker."""

import os

# Before anything imports numpy, in the hub and in its worker. Aggregation has two threads
# of its own, and BLAS's burn the cores while they wait for work: ten times slower on two cores.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
