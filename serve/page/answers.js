// What a model answered, drawn for its task.

/** Labels with their scores as bars: `scores` are [label, score], the best first. */
function showScores(scores) {
  return table(["Label", "Score", ""], scores.map(([label, score], i) =>
    [label, percent(score), bar(score, i ? "" : "first")]), { label: "Labels and scores" });
}

/** Pairs of label and score, the best first; null where a prediction has none. */
function scoresOf({ scores, label, score }) {
  const pairs = scores ? Object.entries(scores) : label !== undefined ? [[String(label), score]] : [];
  return pairs.length ? pairs.sort((a, b) => b[1] - a[1]) : null;
}

function cosine(a, b) {
  let dot = 0, left = 0, right = 0;
  for (let i = 0; i < a.length; i++) { dot += a[i] * b[i]; left += a[i] * a[i]; right += b[i] * b[i]; }
  return dot / (Math.sqrt(left * right) || 1);
}

/** A text with its entities marked, and a table of them. Positions count characters, of which one may be two of JavaScript's. */
function showEntities(text, entities) {
  const letters = Array.from(text), parts = [];
  let at = 0;
  for (const { start, end, label } of entities) {
    parts.push(letters.slice(at, start).join(""), h("mark", {}, letters.slice(start, end).join(""), h("small", {}, ` ${label}`)));
    at = end;
  }
  const marked = h("p", { class: "answer" }, parts, letters.slice(at).join(""));
  if (!entities.length) return [marked, h("p", { class: "note" }, "No entities were found.")];
  return [marked, table(["Entity", "Kind", "Score", ""], entities.map((one) =>
    [one.text, one.label, percent(one.score), bar(one.score, "first")]), { numText: 2, label: "Entities" })];
}

const showJson = (value) => h("pre", { tabindex: "0" }, clip(JSON.stringify(value, null, 1)));

function showPrediction(said) {
  return said.predictions.map((one) => {
    const scores = scoresOf(one);
    return scores ? showScores(scores) : showJson(one);
  });
}

function showCosine(vectors) {
  const value = cosine(vectors[0], vectors[1]);
  return [h("p", {}, "Cosine similarity"), h("p", { class: "figure", id: "cosine" }, value.toFixed(4)), bar(value, "first"),
    h("p", { class: "note" }, `Two vectors of ${vectors[0].length} numbers.`)];
}

/** Who answered, and how long it took as the browser sees it. */
function showHeaders(answer, startedMs) {
  const parts = [`${duration(performance.now() - startedMs)} in the browser`];
  const version = answer.headers.get("x-model-version"), id = answer.headers.get("x-request-id");
  if (version) parts.push(`version ${version}`);
  if (id) parts.push(`request ${id}`);
  return h("p", { class: "note" }, parts.join(" · "));
}
