"""`python -m gateway` is `citygate`."""

import sys

from gateway.cli.main import main

sys.exit(main())
