"""Where the packaged program begins."""

import os
import sys

from infernet.host.packaged import undo_loader

undo_loader(os.environ)

from infernet.cli.__main__ import main  # noqa: E402 - nothing is loaded before the environment is what it was

sys.exit(main())
