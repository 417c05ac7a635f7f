"""Stage ``fetch [EXPERIMENT …]``: fetches the pictures that experiments use."""

import sys
from collections.abc import Sequence

from pipeline.config.code_hash import code_hash
from pipeline.config.params import find_experiment, read_params
from pipeline.config.schema import Params
from pipeline.errors import UserError
from pipeline.imaging.fetching import fetch_images, remove_other_images
from pipeline.records.status import record_failure
from pipeline.stages import run_stage


def fetch(params: Params, experiments: Sequence[str] = ()) -> None:
    """Fetches the pictures of some experiments; or of all, and removes all other pictures.

    ``UserError`` names all the pictures that could not be fetched.
    """
    names = experiments or params.experiments
    used = {name: find_experiment(params, name).images.values() for name in names}
    images = {image: params.images[image] for pair in used.values() for image in pair}
    if not experiments:
        remove_other_images(images)
    sources = {name: (image.source, image.hash) for name, image in images.items()}
    failures = fetch_images(sources, code_hash("pipeline.imaging.picture_files"))
    for name, pictures in used.items():
        if reasons := [failures[image] for image in dict.fromkeys(pictures) if image in failures]:
            record_failure(name, "\n".join(reasons))
    if failures:
        raise UserError("\n".join(failures.values()))


if __name__ == "__main__":
    run_stage(lambda: fetch(read_params(), sys.argv[1:]))
