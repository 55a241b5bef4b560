// Traffic between versions, and drift.

const HARMS = { failure: "Failed", slow: "Failed or slow", feedback: "Judged bad" };
const STATES = { regression: ["bad", "✕ worse"], safe: ["good", "✓ not worse"], undecided: ["open", "? undecided"] };
const points = (share) => (isNumber(share) ? `${share > 0 ? "+" : ""}${(100 * share).toFixed(2).replace("-", "−")} %` : "–");

/** One canary against the control: an interval for each kind of harm, which holds whenever one looks. */
function comparisonTable(name, comparison) {
  const rows = comparison.findings.map((one) => {
    const reach = Math.max(Math.abs(one.low), Math.abs(one.high), one.margin, 1e-6);
    const [kind, text] = STATES[one.state] ?? ["open", one.state];
    return [HARMS[one.harm] ?? one.harm, `${percent(one.canary)} of ${figure(one.num_canary)}`, `${percent(one.control)} of ${figure(one.num_control)}`,
      `${points(one.low)} to ${points(one.high)}`, whisker(one.low, one.high, [-reach, reach], one.margin), points(one.margin), pill(text, kind)];
  });
  const head = ["Harm", `Version ${name}`, `Version ${comparison.with}`, "Difference", "", "Allowed", "State"];
  return [h("p", {}, `Version ${name} against ${comparison.with}. Each difference is an interval that holds at every moment together, with ${percent(1 - comparison.alpha)} confidence; the mark is what is allowed.`),
    h("div", { class: "wide stacked" }, table(head, rows, { label: `Version ${name} against ${comparison.with}` }))];
}

function shadowTable(name, shadow) {
  const share = isNumber(shadow.disagreement) ? `${percent(shadow.disagreement)} (${percent(shadow.disagreement_low)} to ${percent(shadow.disagreement_high)})` : "–";
  return [h("p", {}, `Version ${name} gets copies; its answers are compared and thrown away.`), factTable([
    ["Compared", figure(shadow.compared)], ["Another answer", share],
    ["Failed", figure(shadow.failed)], ["Dropped", figure(shadow.dropped)],
    ["Largest difference", isNumber(shadow.max_abs_difference) ? shadow.max_abs_difference.toPrecision(3) : null]])];
}

/** `arms` are [version, what traffic says of it], of one model. */
function fillTraffic(box, arms) {
  if (!arms.length) return fill(box);
  const rows = arms.map(([version, one]) => [version, one.arm, percent(one.share), figure(one.requests), figure(one.failures),
    isNumber(one.feedback?.mean) ? `${percent(one.feedback.mean)} of ${figure(one.feedback.num)}` : "–"]);
  return fill(box, h("h3", {}, "Traffic"),
    h("div", { class: "wide stacked" }, table(["Version", "Part", "Share", "Requests", "Failed", "Judged good"], rows, { label: "Arms", numText: 2 })),
    arms.filter(([, one]) => one.stopped).map(([version, one]) => h("p", { class: "error" }, `Version ${version} gets no more requests. ${one.stopped}`)),
    arms.filter(([, one]) => one.comparison).map(([version, one]) => comparisonTable(version, one.comparison)),
    arms.filter(([, one]) => one.shadow).map(([version, one]) => shadowTable(version, one.shadow)));
}

/** How often a feature's values fall into each bin, in the reference and now. */
function binTable(feature) {
  const most = Math.max(1e-9, ...feature.reference, ...feature.window);
  const rows = feature.bins.map((name, i) => [name, percent(feature.reference[i]), percent(feature.window[i]),
    [bar(feature.reference[i] / most), bar(feature.window[i] / most, feature.state === "alarm" ? "fail" : "first")]]);
  return h("details", {}, h("summary", {}, `${feature.name}: reference and now`), h("div", { class: "wide", tabindex: "0" },
    table(["", "Reference", "Now", ""], rows, { label: feature.name })));
}

function fillDrift(box, drift) {
  if (!drift) return fill(box);
  const open = [...box.querySelectorAll("details[open]")].map((one) => one.dataset.name);
  const kinds = { ok: ["good", "✓ as in the reference"], alarm: ["bad", "✕ changed"] };
  const stateOf = (state) => pill(...(kinds[state] ?? ["open", `? ${state}`]).toReversed());
  const { window, features } = drift;
  const rows = features.map((one) => [one.name, stateOf(one.state), plain(one.distance), plain(one.statistic), plain(one.threshold), plain(one.p_adjusted)]);
  const details = features.map((one) => Object.assign(binTable(one), { open: open.includes(one.name) }));
  details.forEach((one, i) => { one.dataset.name = features[i].name; });
  return fill(box, h("h3", {}, "Drift ", stateOf(drift.state)),
    h("p", {}, `Requests against the artifact's reference of ${figure(drift.reference_rows)} rows. ${figure(drift.windows)} windows were looked at, ${figure(drift.alarms)} with an alarm; the next has ${figure(window.rows)} of ${figure(window.needed)} rows.`),
    rows.length ? h("div", { class: "wide stacked" }, table(["Feature", "State", "Distance", "Statistic", "Threshold", "p, adjusted"], rows, { label: "Drift", numText: 2 })) : null, details);
}

const plain = (value) => (isNumber(value) ? Number(value.toPrecision(3)).toString() : "–");
