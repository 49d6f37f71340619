"""The GPUs of this machine: what there is, whether it can be used, and when that changes."""
