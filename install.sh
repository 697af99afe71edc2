#!/bin/sh
# Create .venv and install a list of packages: install.sh PYTHON REQUIREMENTS (what `make install` calls)
set -eu
python=$1; requirements=$2; venv=.venv/bin/python
fail() { echo "error: $1" >&2; exit 1; }

command -v "$python" > /dev/null || fail "$python: not found; make PYTHON=/path/to/python3.11 ${GOALS:-install}"
version=$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')
case $version in
  3.11|3.12) ;;
  *) fail "Python 3.11 or 3.12 is needed, this is $version: make PYTHON=python3.11 ${GOALS:-install}" ;;
esac
if ! "$venv" -m pip --version > /dev/null 2>&1; then
  "$python" -c 'import ensurepip, venv' 2> /dev/null \
    || fail "$python -m venv is missing; on Debian and Ubuntu: sudo apt-get install python$version-venv"
  "$python" -m venv .venv
fi
pip() { "$venv" -m pip install --quiet --disable-pip-version-check "$@"; }

# On Linux the usual index gives torch with gigabytes of CUDA, of no use without a GPU.
torch=$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' "$requirements")
installed=$("$venv" -c 'from importlib.metadata import version; print(version("torch").split("+")[0])' 2> /dev/null) || true
if [ "$requirements" = requirements-cpu.txt ] && [ "$(uname -s)" = Linux ] && [ "torch==$installed" != "$torch" ]; then
  index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}
  if PIP_EXTRA_INDEX_URL= PIP_FIND_LINKS= PIP_CONFIG_FILE=/dev/null \
      pip --index-url "$index" --timeout 10 --retries 0 --no-deps "$torch" 2> /dev/null; then
    echo "torch: the CPU build, from $index"
  else
    echo "torch: $index does not answer; taken from where pip is set up to look"
  fi
fi
pip -r "$requirements"
