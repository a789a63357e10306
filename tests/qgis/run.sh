#!/usr/bin/env bash
# All tests of the QGIS plugin. Installs what is missing on Debian; leaves pictures in .ci/out/qgis.
set -euo pipefail
cd "$(dirname "$0")/../.."
export DEBIAN_FRONTEND=noninteractive PYTHONDONTWRITEBYTECODE=1
export GEOSAM2_TEST_PYTHON="${GEOSAM2_TEST_PYTHON:-$PWD/.venv/bin/python}"
export GEOSAM2_QGIS_OUT="$PWD/.ci/out/qgis"
mkdir -p "$GEOSAM2_QGIS_OUT"

if ! command -v qgis >/dev/null || ! command -v xdotool >/dev/null || ! command -v xvfb-run >/dev/null \
    || ! command -v lrelease >/dev/null || ! command -v gdb >/dev/null; then
    apt-get update -q
    timeout 900 apt-get install -yq --no-install-recommends \
        qgis python3-qgis xvfb xauth xdotool imagemagick gdb python3-venv qttools5-dev-tools \
        libegl1 libxkbcommon0 libdbus-1-3
fi
# QGIS lives in Debian's Python, which is another one than the project's
qgis_venv=.ci/qgis-venv
[ -x $qgis_venv/bin/pytest ] || { /usr/bin/python3 -m venv --system-site-packages $qgis_venv
    $qgis_venv/bin/python -m pip install -q pytest pytest-qgis pytest-timeout; }
qt6_venv=.ci/qt6-venv
[ -x $qt6_venv/bin/pytest ] || { /usr/bin/python3 -m venv $qt6_venv
    $qt6_venv/bin/python -m pip install -q PyQt6 pytest pytest-timeout; }

pytest="-m pytest -q -c tests/qgis/pytest.ini --rootdir tests/qgis"
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
clean() { env -u DISPLAY -u GEOSAM2_PYTHON HOME="$home" XDG_RUNTIME_DIR="$home" "$@"; }

echo "== parts, in QGIS without a window"
clean QT_QPA_PLATFORM=offscreen timeout 900 $qgis_venv/bin/python $pytest \
    tests/qgis/test_session.py tests/qgis/test_output.py tests/qgis/test_processing.py \
    tests/qgis/test_widgets.py -k "not set_up"  # those make environments: once, below, is enough
echo "== Qt 6"
clean QT_QPA_PLATFORM=offscreen PYTHONPATH=tests/qgis/qt6shim timeout 600 $qt6_venv/bin/python $pytest \
    --noconftest tests/qgis/test_widgets.py
echo "== qgis_process"
clean timeout 600 $qgis_venv/bin/python $pytest -p no:pytest_qgis tests/qgis/test_qgis_process.py
echo "== the whole, in a real window"
clean timeout 1000 $qgis_venv/bin/python $pytest -s -p no:pytest_qgis tests/qgis/test_desktop.py
