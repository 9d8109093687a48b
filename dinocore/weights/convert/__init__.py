"""Read and write weights of the other DINO codebases."""

from .state import ALIASES, convert_state_dict

__all__ = ["ALIASES", "convert_state_dict"]
