#!/usr/bin/env bash
# A release gate for continuous integration: compress, measure, judge; compare with the last release where there is
# one. The exit code blocks the merge: 0 PASS · 1 FAIL · 3 INCONCLUSIVE (too little evidence) · 2, 4 an error.
#
#   RECIPE=recipe.yaml RELEASE=release PREVIOUS=previous ./release-gate.sh
set -euo pipefail

recipe=${RECIPE:-recipe.yaml}
release=${RELEASE:-release}      # written: artifacts, evidence, report.html
previous=${PREVIOUS:-previous}   # read where it holds an earlier release
summary=${GITHUB_STEP_SUMMARY:-summary.md}

arguments=(run "$recipe" --out "$release" --junit verdicts.xml --summary "$summary" --comment comment.md)
if [[ -f $previous/release.json ]]; then
    arguments+=(--against "$previous")
else
    echo "no earlier release in $previous: regressions are judged against the recipe's baseline"
fi
edgesmith "${arguments[@]}"
