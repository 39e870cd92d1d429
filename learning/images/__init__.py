"""Private pictures on their way from a folder or file to batches: the same steps as text takes."""
