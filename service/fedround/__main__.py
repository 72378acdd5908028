"""`python -m fedround` is `fedround`."""

import sys

from fedround.cli import main

sys.exit(main())
