"""Camera shake: the length asked for, the middle at rest and at the centre of mass, true rotations."""

import numpy as np
import pytest

from datasets.trajectory import _homographies, displaced, random_shake

CENTRE = (319.5, 239.5)
CORNERS = np.array([[200, 100], [455, 100], [200, 355], [455, 355]], float)


def shake(seed: int, length: float) -> np.ndarray:
    return random_shake(np.random.default_rng(seed), length, 700.0, CENTRE, CORNERS)


def path_lengths(paths: np.ndarray) -> np.ndarray:
    return np.linalg.norm(np.diff(paths, axis=0), axis=2).sum(axis=0)


@pytest.mark.parametrize("length", [2.0, 12.0, 40.0])
def test_middle_is_the_identity_and_the_centre_of_mass(length: float) -> None:
    for seed in range(20):
        frames = shake(seed, length)
        assert len(frames) % 2 == 1
        assert np.allclose(frames[len(frames) // 2], np.eye(3), atol=1e-12)
        offset = displaced(frames, CORNERS).mean(axis=0) - CORNERS
        assert np.linalg.norm(offset, axis=1).max() < 0.02 * length


@pytest.mark.parametrize("length", [5.0, 20.0])
def test_length_is_as_asked_and_frames_are_close(length: float) -> None:
    for seed in range(20):
        paths = displaced(shake(seed, length), CORNERS)
        assert path_lengths(paths).mean() == pytest.approx(length, rel=0.02)
        assert np.linalg.norm(np.diff(paths, axis=0), axis=2).max() < 3


def test_all_six_degrees_of_freedom_move() -> None:
    """Away from pure shifts: the corners' paths differ, and the homographies are not affine."""
    spread, perspective = [], []
    for seed in range(10):
        frames = shake(seed, 20.0)
        moves = displaced(frames, CORNERS) - CORNERS
        spread.append(np.ptp(moves, axis=1).max())
        perspective.append(np.abs(frames[:, 2, :2]).max())
    assert np.mean(spread) > 1 and min(perspective) > 1e-7


def test_directions_are_not_preferred() -> None:
    ends = np.array([displaced(shake(seed, 10.0), CORNERS)[-1, 0] - CORNERS[0] for seed in range(200)])
    assert np.abs(ends.mean(axis=0)).max() < 1.5
    assert 0.5 < ends[:, 0].std() / ends[:, 1].std() < 2


def test_same_seed_same_shake() -> None:
    assert np.array_equal(shake(3, 9.0), shake(3, 9.0))
    assert not np.array_equal(shake(3, 9.0), shake(4, 9.0))


def test_simple_poses_move_points_as_a_camera_does() -> None:
    angle, focal = 0.01, 700.0
    poses = np.array([[0, angle, 0, 0, 0, 0], [0, 0, 0, 0.02, 0, 0], [0, 0, 0, 0, 0, -0.5], [0, 0, np.pi / 2, 0, 0, 0]])
    point = np.array([CENTRE]) + [[10.0, 0.0]]
    moved = displaced(_homographies(poses, focal, CENTRE), point)[:, 0] - CENTRE
    assert np.allclose(moved[0], [focal * np.tan(np.arctan(10 / focal) + angle), 0])  # Yaw turns the ray.
    assert np.allclose(moved[1], [10 + 0.02 * focal, 0])  # A shift over the distance.
    assert np.allclose(moved[2], [20, 0])  # At half the distance everything is twice as large.
    assert np.allclose(moved[3], [0, 10])  # Roll.
