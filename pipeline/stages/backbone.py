"""Stage ``backbone``: prepares the network whose features define content and style."""

from pipeline.config.plan import read_backbone_plan
from pipeline.networks.prepare import prepare
from pipeline.stages import run_stage

if __name__ == "__main__":
    run_stage(lambda: prepare(read_backbone_plan().settings))
