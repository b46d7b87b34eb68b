"""`python -m minillm.grading grade ch08`: what the jobs of tasks.py run."""

import sys

from minillm.grading.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
