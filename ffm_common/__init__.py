"""What every room stands on: error tree, typed configuration, atomic files, tensor shape."""
