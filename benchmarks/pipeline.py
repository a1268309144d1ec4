"""Training images per second: rszoo's pipeline, compared with Pillow in a PyTorch DataLoader (without torchvision).

python benchmarks/pipeline.py

Both decode JPEGs of about 110 KB (500x375, from scikit-learn's two photos), crop at random, resize to 224, flip,
normalize and batch, on all cores; the second pair also applies RandAugment, for which Pillow's operations are the
closest match. Each run is a fresh process; the time is measured inside it, after the first batches.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import timing
from timing import Case, Target

_IMAGES = 256

_MAKE = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images
from rszoo.pipeline.writer import write_tfrecords
folder, rng = Path(sys.argv[1]), np.random.default_rng(0)
photos = [Image.fromarray(photo).resize((1000, 667)) for photo in load_sample_images().images]
for number in range(int(sys.argv[2])):
    path = folder / "images" / "train" / str(number % 2) / f"{number}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    left, top = rng.integers(0, 500), rng.integers(0, 292)
    photos[number % 2].crop((left, top, left + 500, top + 375)).save(path, quality=98)
write_tfrecords(str(folder / "images"), folder / "records", shards=2, overwrite=True)
"""

# The timing of both: a few batches to fill the buffers, then the clock starts.
_CLOCK = """
def clock(batches, count, size):
    import sys, time
    for _ in range(4):
        next(batches)
    start = time.perf_counter()
    for _ in range(count // size):
        next(batches)
    print(time.perf_counter() - start)
"""

_RSZOO = (
    _CLOCK
    + """
import sys
from rszoo.pipeline.faults import Faults
from rszoo.pipeline.share import Share
from rszoo.pipeline.sources import open_source
from rszoo.pipeline.training import training_dataset
from rszoo.recipes.load import load_recipe
data, layers, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
settings = ["data.image_size=224", "model.num_classes=2", "augment.randaugment_magnitude=15"]
recipe = load_recipe("resnet-rs-50-i160", [*settings, f"augment.randaugment_layers={layers}"])
dataset = training_dataset(open_source(data, "train"), recipe, share=Share(), batch_size=32, faults=Faults())
clock(iter(dataset), count, 32)
"""
)

_PEER = (
    _CLOCK
    + """
import math, os, random, sys
from pathlib import Path
import numpy as np, torch
from PIL import Image, ImageEnhance, ImageOps
layers, level = int(sys.argv[2]), 1.5
MEAN, STD = (np.array(values, np.float32) * 255 for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

def affine(*matrix):
    return lambda image: image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=(128, 128, 128))

def enhance(kind):
    return lambda image: kind(image).enhance(1.8 * level + 0.1)

def cutout(image):
    x, y = random.randrange(224), random.randrange(224)
    image.paste((128, 128, 128), (max(x - 60, 0), max(y - 60, 0), min(x + 60, 224), min(y + 60, 224)))
    return image

OPS = [
    ImageOps.autocontrast, ImageOps.equalize, ImageOps.invert, cutout,
    lambda image: image.rotate(30 * level, fillcolor=(128, 128, 128)),
    lambda image: ImageOps.posterize(image, 6),
    lambda image: ImageOps.solarize(image, 128),
    lambda image: image.point([min(value + 165, 255) if value < 128 else value for value in range(256)] * 3),
    enhance(ImageEnhance.Color), enhance(ImageEnhance.Contrast),
    enhance(ImageEnhance.Brightness), enhance(ImageEnhance.Sharpness),
    affine(1, 0.3 * level, 0, 0, 1, 0), affine(1, 0, 0, 0.3 * level, 1, 0),
    affine(1, 0, 100 * level, 0, 1, 0), affine(1, 0, 0, 0, 1, 100 * level),
]

class Images(torch.utils.data.Dataset):
    def __init__(self):
        self.paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
    def __len__(self):
        return 10**9
    def __getitem__(self, index):
        path = self.paths[index % len(self.paths)]
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = image.size
        for _ in range(10):
            area, ratio = random.uniform(0.08, 1) * width * height, random.uniform(3 / 4, 4 / 3)
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                break
        else:
            w = h = min(width, height)
        x, y = random.randint(0, width - w), random.randint(0, height - h)
        image = image.resize((224, 224), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for _ in range(layers):
            image = random.choice(OPS)(image)
        return (np.asarray(image, np.float32) - MEAN) / STD, int(path.parent.name)

loader = torch.utils.data.DataLoader(Images(), batch_size=32, num_workers=os.cpu_count())
clock(iter(loader), int(sys.argv[3]), 32)
"""
)


def main() -> None:
    parser = timing.new_parser(__doc__, rounds=3)
    parser.add_argument("--count", type=int, default=2048, help="images in each run, default 2048")
    parser.add_argument(
        "--folder", type=Path, default=timing.DEFAULT_FOLDER / "pipeline", help="folder for the created images"
    )
    arguments = parser.parse_args()

    folder = arguments.folder
    if not (folder / "records").is_dir():
        subprocess.run([sys.executable, "-c", _MAKE, str(folder), str(_IMAGES)], check=True)
    cases = []
    for layers, words in ((0, ""), (2, " with RandAugment")):
        peer = f"Pillow and DataLoader{words}"
        for name, program, data in (
            (peer, _PEER, "images/train"),
            (f"rszoo, TFRecords{words}", _RSZOO, "records"),
            (f"rszoo, single files{words}", _RSZOO, "images"),
        ):
            command = [sys.executable, "-c", program, str(folder / data), str(layers), str(arguments.count)]
            ours = program == _RSZOO
            cases.append(
                Case(
                    name,
                    command,
                    baseline=peer if ours else None,
                    targets=[Target("ratio", 1.0)] if ours else [],
                    reports_seconds=True,
                )
            )
    results = timing.measure(cases, arguments.rounds)
    cores = os.cpu_count() or 1
    rates = {name: round(arguments.count / result.median / cores) for name, result in results.items()}
    sizes = [path.stat().st_size for path in (folder / "images").rglob("*.jpg")]
    timing.report(
        results,
        arguments.json,
        images_per_second_and_core=rates,
        mean_image_kb=round(sum(sizes) / len(sizes) / 1000),
        cores=cores,
    )


if __name__ == "__main__":
    main()
