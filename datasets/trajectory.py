"""Random trajectories of a hand-held camera during one exposure, and the homographies they cause in the image.

A pose has six degrees of freedom: rotations (pitch, yaw, roll) in radians and translations (x, y, z) in units of the
scene's distance; the scene is a plane facing the camera. Each is a smooth random walk: its velocity is an
Ornstein-Uhlenbeck process, which keeps direction for a while and then drifts, as a hand does (measured trajectories:
Köhler et al., Recording and Playback of Camera Shake, ECCV 2012).

The middle of the exposure is the identity, and is also the mean pose: the sharp image, taken there, lies at the blur's
centre of mass, so a network need not learn to shift images.
"""

import numpy as np

# How much of the motion each degree of freedom causes. Pitch and yaw dominate a hand's shake of a distant scene; roll
# and z act only away from the optical axis.
WEIGHTS = np.array([1.0, 1.0, 0.7, 0.4, 0.4, 0.4])
PERSISTENCE = 0.4  # Correlation time of the velocity, in exposures.
WALK_STEPS = 96
# Consecutive frames are about this many pixels apart, so that a moving point leaves a line and not a row of dots.
FRAME_STEP = 0.75
FEWEST_FRAMES = 9


def random_shake(
    rng: np.random.Generator,
    length: float,
    focal: float,
    centre: tuple[float, float],
    points: np.ndarray,
    count: int | None = None,
) -> np.ndarray:
    """The homographies of the frames of one exposure.

    length: mean path length of the points, in pixels.
    focal: focal length in pixels; centre: the optical axis (x, y) in the image.
    points: (P, 2) image positions (x, y) over which the length is measured.
    count: of the frames, odd; as many as the length needs by default.
    Returns: (N, 3, 3), N odd, homographies from the middle frame's image positions to each frame's; the one in the
        middle is the identity.
    """
    count = count or frame_count(length)
    # Divided by the focal length, a pose's unit moves the image by about a pixel: small enough to scale linearly.
    poses = _centred(_resampled(_random_walk(rng), count)) / focal
    scale = length / _mean_path_length(_homographies(poses, focal, centre), points)
    return _homographies(poses * scale, focal, centre)


def frame_count(length: float) -> int:
    """How many frames a path of that many pixels needs; an odd number."""
    return max(FEWEST_FRAMES, int(np.ceil(length / FRAME_STEP)) // 2 * 2 + 1)


def displaced(homographies: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where each frame puts the points: (N, 3, 3), (P, 2) -> (N, P, 2)."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    moved = np.einsum("nij,pj->npi", homographies, homogeneous)
    return moved[..., :2] / moved[..., 2:]


def _random_walk(rng: np.random.Generator) -> np.ndarray:
    """(WALK_STEPS, 6) poses of about unit size."""
    keep = np.exp(-1 / (PERSISTENCE * WALK_STEPS))
    velocity = np.empty((WALK_STEPS, 6))
    velocity[0] = rng.standard_normal(6)
    for step in range(1, WALK_STEPS):
        velocity[step] = keep * velocity[step - 1] + np.sqrt(1 - keep**2) * rng.standard_normal(6)
    return np.cumsum(velocity * WEIGHTS, axis=0) / WALK_STEPS


def _centred(poses: np.ndarray) -> np.ndarray:
    """An odd number of poses made zero in the middle, by a shift, and on average, by a constant acceleration."""
    time = np.linspace(-1, 1, len(poses))[:, None]
    poses = poses - poses[len(poses) // 2]
    return poses - poses.mean(axis=0) * time**2 / np.mean(time**2)


def _resampled(poses: np.ndarray, count: int) -> np.ndarray:
    old, new = np.linspace(0, 1, len(poses)), np.linspace(0, 1, count)
    return np.stack([np.interp(new, old, column) for column in poses.T], axis=1)


def _homographies(poses: np.ndarray, focal: float, centre: tuple[float, float]) -> np.ndarray:
    """K (R + t n^T) K^-1 for each pose, n the plane's normal (0, 0, 1): (N, 6) -> (N, 3, 3)."""
    matrices = _rotations(poses[:, :3])
    matrices[:, :, 2] += poses[:, 3:]
    camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    return camera @ matrices @ np.linalg.inv(camera)


def _rotations(vectors: np.ndarray) -> np.ndarray:
    """Rodrigues' formula: rotation vectors (N, 3) -> matrices (N, 3, 3)."""
    cross = np.zeros((len(vectors), 3, 3))
    x, y, z = vectors.T
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -z, y, -x
    cross -= cross.transpose(0, 2, 1)
    angle = np.linalg.norm(vectors, axis=1)[:, None, None]
    # sinc(a / pi) = sin(a) / a, and is 1 at 0.
    return np.eye(3) + np.sinc(angle / np.pi) * cross + np.sinc(angle / (2 * np.pi)) ** 2 / 2 * (cross @ cross)


def _mean_path_length(homographies: np.ndarray, points: np.ndarray) -> float:
    steps = np.diff(displaced(homographies, points), axis=0)
    return float(np.linalg.norm(steps, axis=-1).sum(axis=0).mean())
