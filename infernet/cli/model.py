"""`infernet model`: the models on this machine."""

from __future__ import annotations

import argparse
from typing import Final

USAGE: Final = "pull [--json]"
DESCRIPTION: Final = """\
Fetch the starter model, SmolLM2 135M Instruct (Apache-2.0, a 93 MB download), into the model store. Its hash is
checked; what is there already and whole is kept. To serve another one, give its file: infernet start --model FILE."""
EXAMPLES: Final = """\
examples:
  infernet model pull
  infernet model pull --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to do."""
    parser.add_argument("action", choices=["pull"], help="pull: have the starter model")


def run(arguments: argparse.Namespace) -> int:
    """Fetch it."""
    from infernet.cli.output import print_json
    from infernet.config import places
    from infernet.engines import models

    store = places().models_dir
    if not arguments.json:
        return models.main(["fetch", "--store", str(store)])
    path = models.fetch_starter(store, lambda _done, _total: None)
    print_json({"model": models.STARTER.name, "path": str(path)})
    return 0
