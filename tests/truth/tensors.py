"""Slow and plain twins of the measures on tensors: everything held at once, in float64, by textbook formulas."""

from __future__ import annotations

import numpy as np


def movement(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Lengths, relative movement, cosine and angle of two tensors."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    cosine = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    return {
        "before_l2": float(np.sqrt(a @ a)), "after_l2": float(np.sqrt(b @ b)), "moved_l2": float(np.linalg.norm(b - a)),
        "relative": float(np.linalg.norm(b - a) / np.linalg.norm(a)), "cosine": cosine,
        "angle_deg": float(np.degrees(2 * np.arctan2(np.linalg.norm(b / np.linalg.norm(b) - a / np.linalg.norm(a)),
                                                      np.linalg.norm(b / np.linalg.norm(b) + a / np.linalg.norm(a))))),
    }  # fmt: skip


def effective_rank(matrix: np.ndarray) -> float:
    """exp of the entropy of the squared singular values' shares."""
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def subspaces(matrix: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k leading left and right singular vectors, as columns."""
    left, _, right = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    return left[:, :k], right[:k].T


def angles(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Principal angles in degrees, falling."""
    return np.degrees(np.arccos(np.clip(np.linalg.svd(x.T @ y, compute_uv=False), -1, 1)))[::-1]
