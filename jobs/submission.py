r"""Write the competition's CSV on a Ray cluster, with the flags of `raytrain submission`.

ray job submit --working-dir . -- python jobs/submission.py /shared/test.parquet \
    --out /shared/submission.csv
"""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    # The command's name comes first, as if `raytrain submission` had been typed.
    main(["submission", *sys.argv[1:]])
