"""Private text on its way from a file to batches: streamed, tokenized once, kept on disk."""
