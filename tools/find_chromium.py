"""Find a Chromium for the browser tests, or install Debian's where that may be done."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome")


def main() -> int:
    if not any(map(shutil.which, NAMES)) and shutil.which("apt-get") and os.geteuid() == 0:
        print("installing Debian's chromium")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet)
        subprocess.run(["apt-get", "install", "-y", "-qq", "chromium"], env=quiet, stdout=subprocess.DEVNULL)
    if not any(map(shutil.which, NAMES)):
        print("The browser tests need Chromium: apt-get install chromium (as root), or put one on the PATH.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
