#!/usr/bin/env bash
# `make test-browser`: the page of a report in Debian's Chromium, driven by Playwright. Where no
# Chromium can be had the tests are left out, and it says so.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=.venv/bin/python

find_chromium() { command -v chromium || command -v chromium-browser || command -v google-chrome; }

if ! find_chromium > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium; } > /dev/null 2>&1 || true
fi
if ! RLSKIT_CHROMIUM=$(find_chromium); then
    echo "tests/browser left out: there is no Chromium; install Debian's package chromium"
    exit 0
fi
export RLSKIT_CHROMIUM
$python -m pip install --quiet -c constraints.txt playwright
$python -c 'import playwright.sync_api'  # or the tests would be skipped
$python -m pytest -q tests/browser
