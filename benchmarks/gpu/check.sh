#!/usr/bin/env bash
# Install wheels that were carried to a machine without a network, and run the parts on its GPU.
#
#   benchmarks/gpu/check.sh [WHEELS] [arguments of benchmarks.gpu]
#
# WHEELS: a folder of wheels, .whl in the clone by default; none are installed where it is missing.
# OUT: the folder for results, gpu-results by default. The machine's own Python has PyTorch; these
# are what it may lack (for Python 3.12), 5 MB:
#
#   get="pip download --only-binary=:all: --python-version 3.12 --platform manylinux2014_x86_64 -d .whl"
#   $get --no-deps open_clip_torch ftfy wcwidth platformdirs
#   $get pydantic
#
# The part `golden` reads the recorded figures (39 MB) in shared/golden, in or beside the clone.
set -eu
cd "$(dirname "$0")/../.."
wheels=.whl
if [ $# -gt 0 ] && [ -d "$1" ]; then
  wheels=$1
  shift
fi
python=${PYTHON:-python3}
if [ -d "$wheels" ]; then
  site=$(mktemp -d)
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
exec "$python" -m benchmarks.gpu --out "${OUT:-gpu-results}" "$@"
