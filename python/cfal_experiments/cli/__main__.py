"""`python -m cfal_experiments.cli`, as torchrun starts it."""

import sys

from cfal_experiments.cli.main import main

sys.exit(main())
