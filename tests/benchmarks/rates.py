"""In a module of its own, which a process that measures imports in no time."""


def usual_rate(device: object, dtype: object = None) -> float:
    """Of copies, or of products in dtype."""
    return 1e10 if dtype is None else 1e11
