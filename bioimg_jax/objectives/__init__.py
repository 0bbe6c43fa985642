"""Objectives of pre-training: one file each, one protocol."""

from bioimg_jax.objectives.objective import Aux, Objective, build_objective

__all__ = ["Aux", "Objective", "build_objective"]
