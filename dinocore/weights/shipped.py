"""The files of weights that come with the package, by the names that `--weights` takes."""

from pathlib import Path

BUNDLED = Path(__file__).parent / "bundled" / "tiny.safetensors"
SHIPPED = {"bundled": BUNDLED, "cells": BUNDLED.with_name("cells.safetensors")}
