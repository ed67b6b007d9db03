"""`python -m cfal_experiments.demo`."""

import sys

from cfal_experiments.demo.command import main

sys.exit(main())
