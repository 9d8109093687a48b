"""Weights of the other DINO codebases, read and written."""

from .state import ALIASES, convert_state_dict

__all__ = ["ALIASES", "convert_state_dict"]
