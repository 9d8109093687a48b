"""The weights files included in the package, by the names that `--weights` accepts."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled" / "tiny.safetensors"
SHIPPED = {"bundled": BUNDLED, "cells": BUNDLED.with_name("cells.safetensors")}
