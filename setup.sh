#!/bin/sh
# Makes .venv beside this file and installs multidense into it with the versions of constraints.txt. Where that is done already
# it does nothing. Needs Python 3.11 or newer; PYTHON=… names another one than python3.
set -eu
cd "$(dirname "$0")"
python=${PYTHON:-python3}
done=.venv/.installed
if [ -f $done ] && [ $done -nt pyproject.toml ] && [ $done -nt constraints.txt ]; then exit 0; fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "multidense needs Python 3.11 or newer; name one with PYTHON=…" >&2; exit 1; }
echo "Installing into .venv …" >&2
"$python" -m venv .venv
# uv installs the same set in a tenth of the time; it takes no notice of pip's settings, so it is told where pip would look.
if .venv/bin/python -m pip install -q uv; then
    UV_FIND_LINKS="$("$python" -m pip config get global.find-links 2>/dev/null || true)" \
        .venv/bin/uv pip install -q --python .venv/bin/python -c constraints.txt -e ".[dev]"
else
    .venv/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
fi
touch $done
