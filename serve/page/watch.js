// Traffic between versions, and drift.

function fillTraffic(box, traffic) {
  if (!traffic) return fill(box);
  return fill(box, h("h3", {}, "Traffic"), showJson(traffic));
}

function fillDrift(box, drift) {
  if (!drift) return fill(box);
  return fill(box, h("h3", {}, "Drift"), showJson(drift));
}
