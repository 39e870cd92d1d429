"""Aggregation that a part of the agents cannot spoil; docs/robustness.md has the whole picture.

Every rule is a file of its own, and all of them see updates as what they do to the model: as
changes of the LoRA products ``B A``, never of the factors (`hub.robust.geometry`).
"""
