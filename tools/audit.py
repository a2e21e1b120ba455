"""Known holes of the installed packages, by pip-audit, where its data can be had; else it is said that it cannot."""

import json
import subprocess
import sys


def main() -> int:
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--skip-editable"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=600, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError) as error:
        print(f"pip-audit: no package could be checked: its data cannot be had from here ({type(error).__name__}).")
        return 0
    checked = [package for package in packages if "vulns" in package]
    for package in checked:
        for hole in package["vulns"]:
            fixed = ", ".join(hole["fix_versions"]) or "none yet"
            print(f"pip-audit: {package['name']} {package['version']}: {hole['id']}, mended in {fixed}")
    left = [package for package in packages if "vulns" not in package]
    why = f"; of the others it says: {left[0].get('skip_reason', 'nothing')}" if left else ""
    print(f"pip-audit: {len(checked)} of {len(packages)} packages checked{why}")
    return int(any(package["vulns"] for package in checked))


if __name__ == "__main__":
    sys.exit(main())
