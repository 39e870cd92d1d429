"""One model, one adapter, one dataset, one trainer: for the agent's worker and the hub alike."""
