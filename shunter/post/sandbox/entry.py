"""Starts the zygote, without the path of this package in what programs see.

argv: descriptor of the control socket, folder of the toys, further paths as JSON, folder of the package,
folder of a control group where there is one.
"""

import sys

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[4])
    from shunter.post.sandbox.zygote import main

    sys.path.pop(0)
    main()
