"""A sampling script on a model that lies in no run."""

from pathlib import Path

from ldm.cli.sampling.classes import Sample
from ldm.cli.sampling.flags import check_flags, sampling_parser
from ldm.cli.sampling.job import Job
from ldm.config import instantiate_model
from tests.reference import fill


def built(config, **changes):
    """The model of a configuration in memory, with weights by rule and changed parameters."""
    block = config["model"]
    return fill(instantiate_model({**block, "params": {**block["params"], **changes}})).eval()


def job(model, out, *words, task=None, seed=0, weak=None):
    """The job of these flags; its directory is there."""
    task = task or Sample()
    parser = sampling_parser("")
    task.add_flags(parser)
    given = ["run", "--out", str(out), "--seed", str(seed), *map(str, words)]
    args = parser.parse_intermixed_args(given)
    check_flags(args)
    args.device = "cpu"
    args.weak_model = weak
    task.prepare(model, args)
    items = [{"seed": seed + i, **item} for i, item in enumerate(task.items(model, args))]
    Path(out).mkdir(exist_ok=True)
    return Job.of(task, model, args, items, checkpoint="", block={})


def draw(model, out, *words, **how):
    """Draw all images of a job."""
    made = job(model, out, *words, **how)
    made.begin()
    for batch in made.batches():
        made.write(batch)
    made.finish()
    return made
