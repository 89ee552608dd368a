#!/bin/sh
# A release in a workspace that all of Ray's nodes see. What it computes is in DVC's cache, so that the deployment
# `retrain` at the same commit finds it done and publishes it. Started again, it goes on from what is finished.
set -eu
workspace="$CTFOUNDRY_STATE/training/$LINE"
test -d "$workspace/.git" || git clone --quiet --no-checkout "$CTFOUNDRY_GIT" "$workspace"
cd "$workspace"
git fetch --quiet --tags origin
git checkout --quiet --force --detach "$COMMIT"
exec python -m flows.cli release --line "$LINE"
