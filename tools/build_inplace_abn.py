"""Try to build inplace_abn into this environment and say in one line how it went. Nothing depends on it.

inplace_abn 1.1.0 is a source package of 2020: it needs its build tools present (no build isolation), must not come
from a cache made for another torch and, beside a CUDA build of torch, needs nvcc and a linkable libcudart.
"""

import os
import subprocess
import sys
from pathlib import Path

LOG = Path(sys.prefix) / "inplace_abn.log"


def main() -> None:
    pip = [sys.executable, "-m", "pip", "install", "--no-cache-dir"]
    env = dict(os.environ)
    env.setdefault("TORCH_CUDA_ARCH_LIST", _architectures())
    for folder in ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"):
        env["LIBRARY_PATH"] = f"{folder}:{env.get('LIBRARY_PATH', '')}".rstrip(":")
    with LOG.open("w", encoding="utf-8") as log:
        for command in (
            ["setuptools<81", "setuptools_scm", "wheel", "ninja"],
            ["--no-build-isolation", "inplace_abn==1.1.0"],
        ):
            try:
                done = subprocess.run([*pip, *command], stdout=log, stderr=log, env=env, timeout=600, check=False)
            except subprocess.TimeoutExpired:
                return say("the build took more than 10 minutes")
            if done.returncode:
                return say("the build failed")
        if subprocess.run([sys.executable, "-c", "import inplace_abn"], stdout=log, stderr=log, check=False).returncode:
            return say("it was built but does not import")
    print("inplace_abn: built")


def say(why: str) -> None:
    print(f"inplace_abn: not available ({why}; log in {LOG}). timm's own layers, equal in result, are used.")


def _architectures() -> str:
    """The GPU of this machine, or a common one to compile for when there is none."""
    import torch

    if torch.cuda.is_available():
        return "{}.{}".format(*torch.cuda.get_device_capability())
    return "8.0"


if __name__ == "__main__":
    main()
