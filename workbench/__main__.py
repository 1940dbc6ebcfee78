"""``python -m workbench``: the command ``workbench``, where its script is not installed."""

import sys

from workbench.cli.main import main

sys.exit(main())
