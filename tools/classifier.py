"""Train a small classifier of images, through whose layers `--distance classifier` compares.

    python tools/classifier.py cifar10 --device cuda --out classifier.safetensors
    consistency-edu train cifar10-cd-small --distance classifier --backbone classifier.safetensors

It says how many of the held-out images it classifies rightly.
"""

import argparse
import itertools
from pathlib import Path

from safetensors.torch import save
from tqdm import tqdm

from consistency_edu.data import choose_device
from consistency_edu.features import ClassifierFeatures
from consistency_edu.files import InputError, check_writable, write_file
from consistency_edu.image_loader import image_batches
from consistency_edu.image_sets import load_images, to_floats
from consistency_edu.training import from_seed


def main(arguments: list[str] | None = None) -> float | None:
    """Train and write the classifier; return the share of held-out images that it gets right."""
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("data", help="digits, cifar10, or a folder or file of images with classes")
    ap.add_argument("--out", type=Path, default=Path("classifier.safetensors"))
    ap.add_argument("--size", type=int, help="pixels a side, a power of two, if not their own")
    ap.add_argument("--width", type=int, default=64)
    ap.add_argument("--batch", type=int, default=512)
    ap.add_argument("--steps", type=int, default=1500)
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--flip", action="store_true", help="mirror half of the images")
    args = ap.parse_args(arguments)
    device, images = choose_device(args.device), load_images(args.data, size=args.size)
    check_writable(args.out.parent, args.out.name)
    if images.labels is None:
        raise InputError(f"'{args.data}' has no classes: give a subfolder for each of them.")
    channels, side, _ = images.shape
    with from_seed(args.seed) as generator:
        network = ClassifierFeatures(channels, side, len(images.classes), width=args.width)
    options = {"with_labels": True, "flip": args.flip, "generator": generator}
    batches = image_batches(images.to(device), args.batch, **options)
    network.to(device).fit(tqdm(itertools.islice(batches, args.steps), total=args.steps))
    write_file(args.out, save({k: v.cpu().contiguous() for k, v in network.state_dict().items()}))
    print(args.out)
    try:
        held = load_images(args.data, "test", size=args.size).to(device)
    except InputError:
        return None
    parts = zip(held.images.split(1000), held.labels.split(1000))
    right = sum(int((network.logits(to_floats(x)).argmax(1) == y).sum()) for x, y in parts)
    print(f"{right / len(held):.3f} of {len(held)} held-out images are classified rightly")
    return right / len(held)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        raise SystemExit(f"classifier: {error}") from None
