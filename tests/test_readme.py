"""The commands of the documents: each is taken out of its page and run, on small networks."""

import re
import runpy
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from ldm.cli.arguments import parse
from ldm.cli.train import main
from tests.cli.runs import script_module
from tests.data.photographs import mixed_directory
from tests.shipped_configs import ROOT, plain, previews_in_two_steps, shrunk

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TINY = "configs/tiny/autoencoder-kl.yaml"
# scripts that draw nothing, and what they write below `--out`, or there
JUDGES = {
    "reconstruct": "sheet.png",
    "compare_first_stages": "table.md",
    "compare_trainings": "table.md",
    "latent_stats": "",
    "compare_samplers": "table.md",
}
SHORT = ["--max_steps", "1", "--limit_val_batches", "1", "--num_sanity_val_steps", "0"]


def commands(page):
    """The commands of a page's `sh` blocks, as words, without comments and environments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


ALL = [(page.name, words) for page in PAGES for words in commands(page)]
MADE = [words for _, words in ALL if words[0] == "make"]
TRAINED = [words for _, words in ALL if words[1:2] == ["main.py"]]


def is_for_gpus(words):
    """Whether a command names devices that a machine without a GPU does not have."""
    return "--gpus" in words and words[words.index("--gpus") + 1] != "cpu"


def named(value):
    return value if isinstance(value, str) else " ".join(value)


def test_every_command_is_of_a_kind_that_is_tested():
    for page, words in ALL:
        is_known = words[0] == "make" or (words[0] == "python" and words[1].endswith(".py"))
        assert is_known, f"{page}: {' '.join(words)}"


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("words", MADE, ids=named)
def test_make_knows_the_target(words):
    done = subprocess.run([words[0], "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ".venv/bin" in done.stdout


@pytest.mark.parametrize("words", TRAINED, ids=named)
def test_a_training_command_has_valid_flags(words):
    parse(words[2:])


class Reader:
    """Someone who follows the pages from top to bottom, with names of their own for the blanks."""

    def __init__(self, directory):
        self.directory = directory
        self.photographs = directory / "photographs"
        mixed_directory(self.photographs)
        self.captions = directory / "captions.txt"
        self.captions.write_text("a small red circle on white\n")
        save_image(self.photographs / "mask.png")
        self.map = directory / "map.png"
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(self.map)
        self.small = directory / "small.png"
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(self.small)
        self.runs = {}
        self.drawn = []

    def run(self, words):
        """Do what a line says; it succeeds."""
        arguments = [self.filled(word) for word in words[2:]]
        if words[1] == "main.py":
            self.train(arguments)
        else:
            script = runpy.run_path(words[1])
            name = words[1].removeprefix("scripts/").removesuffix(".py")
            is_told_again = "--from-png" in words
            out = self.directory / f"{len(self.drawn)}_{name}"
            more = [] if name in JUDGES or is_told_again else ["--steps", "2"]
            if name == "compare_samplers":
                more = ["--n", "1"]
            if name == "compare_trainings":
                more = [*SHORT, "--seeds", "1", "--gpus", "cpu", "--val_check_interval", "1"]
            script[name]([*arguments, "--out", str(out), *more])
            written = "00002.png" if is_told_again else JUDGES.get(name, "grid.png")
            assert (out / written).is_file()
            self.drawn.append(out)

    def train(self, arguments, name=None):
        """Run the training command on narrow networks for a step."""
        args = parse(arguments)
        short = [*SHORT, "--gpus", "cpu", "--logdir", str(self.directory / "logs")]
        if args.resume:
            short[1] = "2"
        else:
            config = plain(ROOT / args.base[0])
            short += [*shrunk(config, self.photographs), *previews_in_two_steps(config)]
        assert main([*short, *arguments]) == 0
        if args.train and not args.resume:
            name = name or {"autoencoder-kl-f8": "FIRST", "ldm-kl-f8": "SECOND"}.get(
                args_stem(args)
            )
            newest = max((self.directory / "logs").iterdir(), key=lambda path: path.stat().st_mtime)
            self.runs[name] = str(newest)

    def filled(self, word):
        """A word of a command with its blanks filled in."""
        for name, run in self.runs.items():
            if name is not None:
                word = re.sub(rf"(logs/)?\b{name}\b", run, word)
        word = re.sub(r"\bDIR\b", str(self.photographs), word)
        for name in ("photograph.jpg", "photograph.png", "mask.png"):
            word = re.sub(rf"^{name}$", str(self.photographs / "mask.png"), word)
        word = re.sub(r"^map\.png$", str(self.map), word)
        word = re.sub(r"^small\.png$", str(self.small), word)
        if word == "outputs/00002.png":
            word = next(str(each / "00002.png") for each in self.drawn if "txt2img" in each.name)
        return word.replace("CONFIG.yaml", TINY).replace("captions.txt", str(self.captions))


def save_image(path):
    """A picture whose left half is white."""
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[:, :64] = 255
    Image.fromarray(pixels).save(path)


def args_stem(args):
    """The name of the first configuration, without its directory and ending."""
    return args.base[0].rpartition("/")[2].removesuffix(".yaml")


@pytest.mark.slow
def test_the_commands_of_every_page_work_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    reader = Reader(tmp_path)
    reader.train(["-t", "-b", "configs/tiny/ldm-text.yaml"], name="TEXT")
    reader.train(["-t", "-b", "configs/tiny/ldm-class.yaml"], name="CLASS")
    reader.train(["-t", "-b", "configs/tiny/ldm-layout.yaml"], name="LAYOUT")
    reader.train(["-t", "-b", "configs/tiny/ldm-semantic.yaml"], name="MAPPED")
    reader.train(["-t", "-b", "configs/tiny/ldm-superres.yaml"], name="PAIRS")
    reader.train(["-t", "-b", "configs/tiny/autoencoder-vq.yaml"], name="OTHER")
    for page, words in ALL:
        if words[0] == "make" or is_for_gpus(words) or "/prepare_" in words[1]:
            continue  # published archives: see tests/preparation
        if words[1] == "tests/fuzz.py":
            continue  # takes minutes: see tests/safety
        if words[1] == "scripts/tasks.py":
            script_module("tasks")._parse(words[2:])  # trains for an hour: see tests/scripts
            continue
        # where a page leaves the run open, it is one that the command is for
        by_script = {
            "scripts/txt2img.py": "TEXT",
            "scripts/layout2img.py": "LAYOUT",
            "scripts/semantic.py": "MAPPED",
        }
        kind = by_script.get(words[1], "CLASS" if "--classes" in words else "SECOND")
        if words[1] == "scripts/superres.py" and "--guide" not in words:
            kind = "PAIRS"
        reader.run([re.sub(r"^(RUN|UNCONDITIONAL)$", f"logs/{kind}", word) for word in words])
        assert page
