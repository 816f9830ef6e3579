#!/usr/bin/env bash
# Prepares .venv, and nothing else: workerkit in editable mode, with all that its tests and checks need.
# Quick when nothing changed. PYTHON=/path/to/python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib/apt.sh

recent_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
        if recent_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    echo "setup: Python 3.11 or newer is needed and ${PYTHON:-python3} is not: install one, or name it with PYTHON=..." >&2
    exit 69
}

# Debian and Ubuntu ship Python without what `python -m venv` needs.
ensure_venv_module() {
    local python=$1 package
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then return; fi
    package=$("$python" -c 'import sys; print(f"python{sys.version_info[0]}.{sys.version_info[1]}-venv")')
    if ! can_install; then
        echo "setup: $python cannot make virtual environments: run \`apt-get install $package\` as root" >&2
        exit 69
    fi
    echo "setup: installing $package"
    apt_install "$package"
}

main() {
    local python wanted stamp=.venv/workerkit-setup
    python=$(find_python)
    # A virtual environment holds absolute paths, so one that was copied or moved counts as changed.
    wanted="$PWD $("$python" --version) $(sha256sum <pyproject.toml)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi

    if ! .venv/bin/python -m pip --version >/dev/null 2>&1 ||
        [ "$(.venv/bin/python --version)" != "$("$python" --version)" ]; then
        ensure_venv_module "$python"
        echo "setup: making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    echo "setup: installing workerkit and its development tools into .venv"
    .venv/bin/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
    echo "$wanted" >"$stamp" # last: an interrupted setup starts again
}

main
