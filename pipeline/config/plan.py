"""The plan: everything that decides the result of a stage, written before the stage runs.

The stage ``plan`` runs after ``fetch`` and writes one file for each experiment. It binds the
experiment's complete settings, the hashes of its input pictures, and the hash of the code that
computes it. Later stages read their plan and not params.yaml, so that a run ends with the settings
it began with, and DVC re-runs a stage when its plan has changed and at no other time.
"""

from __future__ import annotations

from pipeline.config.schema import Experiment
from pipeline.settings import Section

STYLIZE = "pipeline.experiments.run"
"""The module whose imports compute an experiment."""


class InputImage(Section):
    """A picture that an experiment uses.

    Attributes:
        name: in the catalogue; the file is ``data/images/NAME.png``.
        sha256: of that file.
    """

    name: str
    sha256: str


class Plan(Section):
    """Everything that decides the result of one experiment, beside the prepared network.

    Attributes:
        experiment: its name.
        settings: all of them, completed from the defaults.
        images: {role: picture}; the roles are ``content`` and ``style``.
        code: hash of the modules that compute it.
    """

    experiment: str
    settings: Experiment
    images: dict[str, InputImage]
    code: str
