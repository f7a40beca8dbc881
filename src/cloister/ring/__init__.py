"""Ring: exact arithmetic on masked tensors."""
