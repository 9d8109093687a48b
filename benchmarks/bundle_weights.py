"""Put a run's weights into the package as the bundled model: half precision, without traces of this machine.

python benchmarks/bundle_weights.py runs/bundled/best.safetensors --origin "what it was trained on"
"""

import argparse
from pathlib import Path

from dinocore.presets import load_config
from dinocore.weights.file import BUNDLED, load_weights, save_weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--origin", required=True, help="one sentence for people")
    arguments = parser.parse_args()
    weights = load_weights(arguments.weights)
    data = weights.config.data.model_copy(update={"path": "", "workers": "auto"})
    train = weights.config.train.model_copy(update={"weights": "bundled"})
    limits = load_config("tiny").eval  # the preset's of today
    model = weights.config.model.model_copy(update={"backbone_weights": "imagenet"})  # and not the file they came from
    config = weights.config.model_copy(update={"model": model, "data": data, "train": train, "eval": limits})
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in weights.tensors.items()}
    left_out = ("data", "metrics")  # a path of this machine, and numbers of the file before it was halved
    facts = {k: v for k, v in weights.facts.items() if k not in left_out} | {"origin": arguments.origin}
    save_weights(BUNDLED, tensors, config, weights.categories, facts)
    print(f"{BUNDLED}: {BUNDLED.stat().st_size / 1e6:.1f} MB, {facts}")


if __name__ == "__main__":
    main()
