"""Update codecs: tensors to few bytes and back."""
