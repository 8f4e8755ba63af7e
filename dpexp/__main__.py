"""`python -m dpexp`: import and call, no more (workers could not unpickle what is defined here)."""

import sys

from dpexp.app import main

if __name__ == "__main__":
    sys.exit(main())
