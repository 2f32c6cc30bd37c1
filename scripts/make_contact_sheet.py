"""Writes docs/results/procedural_contact_sheet.jpg: the first view of scenes 0 to 29 of `procedural-data`, then one walk in ten frames.

    python scripts/make_contact_sheet.py [--output FILE] [--size PIXELS]

Takes about two minutes on one CPU core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from dataparsers.procedural.parser import ProceduralDataParserConfig, generate_scenes

COLUMNS, ROWS, WALK = 10, 3, 11


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/procedural_contact_sheet.jpg"))
    parser.add_argument("--size", type=int, default=128, help="pixels of one picture")
    options = parser.parse_args()
    sheet = Image.new("RGB", (COLUMNS * options.size, (ROWS + 1) * options.size))
    with TemporaryDirectory() as cache:
        config = ProceduralDataParserConfig(data=Path(cache), image_height=options.size, image_width=options.size, samples_per_pixel=9)
        config.num_scenes, config.frames_per_scene = COLUMNS * ROWS, 2
        pictures = [folder / "images" / "frame_00000.png" for folder in generate_scenes(config)]
        config.frames_per_scene = COLUMNS
        (walk,) = generate_scenes(config, [WALK])
        pictures += sorted((walk / "images").iterdir())
        for i, path in enumerate(pictures):
            sheet.paste(Image.open(path), (i % COLUMNS * options.size, i // COLUMNS * options.size))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.output, quality=82)
    print(f"{options.output}: {options.output.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
