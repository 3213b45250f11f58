"""Stand-ins for measured rates, in a module that imports nothing: each process that measures imports it."""


def usual_rate(device: object, dtype: object = None) -> float:
    """Of copies, or of products in dtype."""
    return 1e10 if dtype is None else 1e11
