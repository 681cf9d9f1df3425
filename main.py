"""Train a first stage or a latent diffusion model: `python main.py --base CONFIG.yaml -t`."""

import sys

from ldm.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
