"""Random trajectories of a hand-held camera during one exposure, as homographies of the image.

A pose has six degrees of freedom: rotations (pitch, yaw, roll) in radians and translations (x, y, z) in units of the
distance to the scene, a plane facing the camera. Each is a smooth random walk whose velocity is an Ornstein-Uhlenbeck
process: it keeps its direction for a while and then drifts, as a hand does (for measured trajectories see Köhler et
al., Recording and Playback of Camera Shake, ECCV 2012).

The pose in the middle of the exposure is the identity and also the mean: the sharp image lies at the centre of mass of
the blur, and a network need not learn to shift images.
"""

import cv2
import numpy as np

# Share of each degree of freedom in the motion. Pitch and yaw dominate for distant scenes; roll and z act only
# away from the optical axis.
WEIGHTS = np.array([1.0, 1.0, 0.7, 0.4, 0.4, 0.4])
PERSISTENCE = 0.4  # correlation time of the velocity, in exposures
WALK_STEPS = 96
# Pixels between consecutive frames: small enough for a moving point to leave a line rather than dots.
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

    Args:
        rng: the source of all randomness.
        length: mean path length of the points, in pixels.
        focal: focal length in pixels.
        centre: position (x, y) of the optical axis in the image.
        points: (P, 2) image positions (x, y) over which the length is measured.
        count: number of frames N, odd; None for ``frame_count(length)``.
    Returns:
        (N, 3, 3), N odd: homographies from positions in the middle frame to positions in each frame; that of the middle
        frame is the identity.
    """
    count = count or frame_count(length)
    # After division by the focal length, a unit pose moves the image by about a pixel: small enough to scale linearly.
    poses = _centred(_resampled(_random_walk(rng), count)) / focal
    scale = length / _mean_path_length(_homographies(poses, focal, centre), points)
    return _homographies(poses * scale, focal, centre)


def frame_count(length: float) -> int:
    """Number of frames for a path of that many pixels, odd."""
    return max(FEWEST_FRAMES, int(np.ceil(length / FRAME_STEP)) // 2 * 2 + 1)


def displaced(homographies: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The points as seen in each frame: (N, 3, 3), (P, 2) -> (N, P, 2)."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1)
    moved = np.einsum("nij,pj->npi", homographies, homogeneous)
    return moved[..., :2] / moved[..., 2:]


def _random_walk(rng: np.random.Generator) -> np.ndarray:
    """(WALK_STEPS, 6) poses of order 1."""
    keep = np.exp(-1 / (PERSISTENCE * WALK_STEPS))
    velocity = np.empty((WALK_STEPS, 6))
    velocity[0] = rng.standard_normal(6)
    for step in range(1, WALK_STEPS):
        velocity[step] = keep * velocity[step - 1] + np.sqrt(1 - keep**2) * rng.standard_normal(6)
    return np.cumsum(velocity * WEIGHTS, axis=0) / WALK_STEPS


def _centred(poses: np.ndarray) -> np.ndarray:
    """Shift an odd number of poses to zero in the middle, and to a zero mean by a constant acceleration."""
    time = np.linspace(-1, 1, len(poses))[:, None]
    poses = poses - poses[len(poses) // 2]
    return poses - poses.mean(axis=0) * time**2 / np.mean(time**2)


def _resampled(poses: np.ndarray, count: int) -> np.ndarray:
    old, new = np.linspace(0, 1, len(poses)), np.linspace(0, 1, count)
    return np.stack([np.interp(new, old, column) for column in poses.T], axis=1)


def _homographies(poses: np.ndarray, focal: float, centre: tuple[float, float]) -> np.ndarray:
    """K (R + t n^T) K^-1 for each pose, n the plane's normal (0, 0, 1): (N, 6) -> (N, 3, 3)."""
    matrices = np.stack([cv2.Rodrigues(vector)[0] for vector in poses[:, :3]])
    matrices[:, :, 2] += poses[:, 3:]
    camera = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1]])
    return camera @ matrices @ np.linalg.inv(camera)


def _mean_path_length(homographies: np.ndarray, points: np.ndarray) -> float:
    steps = np.diff(displaced(homographies, points), axis=0)
    return float(np.linalg.norm(steps, axis=-1).sum(axis=0).mean())
