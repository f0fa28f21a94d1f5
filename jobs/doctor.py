"""Look at all machines of a Ray cluster, with the flags of `raytrain doctor`.

ray job submit --working-dir . -- python jobs/doctor.py --storage /shared/runs
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    # The command's name comes first, as if `raytrain doctor` had been typed.
    main(["doctor", *sys.argv[1:]])
