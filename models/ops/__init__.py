"""What makes the network fast: each operation a readable reference (``…_ref``) beside its backends, one signature."""
