"""Data sets as shared tensors, and the order in which they are visited."""
