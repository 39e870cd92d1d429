"""Bytes against accuracy, codec by codec, beside Flower: `python -m benchmarks.codecs`."""
