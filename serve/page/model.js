// What is known of the chosen model: facts, verdicts, figures, traffic, drift, and how to call it.

const dims = (shape) => (shape.length ? shape.map((size) => (size === -1 ? "?" : size)).join(" × ") : "scalar");
const OUTCOMES = { PASS: ["good", "✓"], FAIL: ["bad", "✕"], INCONCLUSIVE: ["open", "?"] };

function pill(text, kind) {
  return h("span", { class: `pill ${kind}` }, text);
}

function statePill(state) {
  const kind = { READY: "good", UNAVAILABLE: "bad" }[state] ?? "open";
  return pill(state.toLowerCase(), kind);
}

function fillFacts(box, model) {
  const { options = {}, tools = {}, parents = [], inputs = [], outputs = [], labels = [] } = model;
  const settings = Object.entries(options).filter(([, value]) => value !== null && typeof value !== "object");
  const tensors = [...inputs.map((one) => ["in", one]), ...outputs.map((one) => ["out", one])];
  fill(box, h("h3", {}, "What it is"), factTable([
    ["Task", model.task], ["Precision", model.precision], ["Engine", model.engine],
    ["Kind", model.kind],
    ["Size", isNumber(model.size_bytes) ? `${bytes(model.size_bytes)}, of which graph and weights ${bytes(model.model_bytes)}` : null],
    ["Threads", model.threads], ["Batch", isNumber(model.max_batch_size) ? `at most ${model.max_batch_size} rows` : null],
    ["Context", isNumber(model.context_length) ? `${figure(model.context_length)} tokens${model.num_slots ? `, ${model.num_slots} texts at a time` : ""}` : null],
    ["Labels", labels.length ? clip(labels.join(", ")).slice(0, 600) : null],
    ["Loaded", model.loading_ms ? `in ${duration(Object.values(model.loading_ms).reduce((a, b) => a + b, 0))}; ${model.golden}` : null],
    ["Digest", model.digest ? h("span", { class: "mono" }, model.digest) : null],
    ["Made by", model.step ? [h("b", {}, model.step), settings.length ? h("span", { class: "mono" }, ` ${settings.map(([k, v]) => `${k}=${v}`).join(" ")}`) : ""].reduce((span, part) => { span.append(part); return span; }, h("span")) : null],
  ]),
  parents.length ? [h("h3", {}, "Made from"), h("ul", { class: "tree" }, parents.map((one) =>
    h("li", {}, h("b", {}, one.role), h("br"), h("span", { class: "mono" }, one.digest))))] : null,
  tensors.length ? h("details", {}, h("summary", {}, `Tensors: ${inputs.length} in, ${outputs.length} out`), h("div", { class: "wide", tabindex: "0" },
    table(["", "Name", "Type", "Shape"], tensors.map(([way, one]) => [way, one.name, one.datatype, dims(one.shape)]), { numText: 4, label: "Tensors" }))) : null,
  Object.keys(tools).length ? h("details", {}, h("summary", {}, "Tools that made it"), h("p", {}, Object.entries(tools).map(([k, v]) => `${k} ${v}`).join(", "))) : null);
}

/** Verdicts of the release that the model is served out of, if it is. */
function fillVerdicts(box, verdicts) {
  box.hidden = !verdicts;
  if (!verdicts) return fill(box);
  const outcome = (verdict) => {
    const [kind, mark] = OUTCOMES[verdict] ?? ["open", "?"];
    return pill(`${mark} ${verdict}`, kind);
  };
  const gates = verdicts.gates ?? [];
  return fill(box, h("h3", {}, `Release ${verdicts.release || ""} `, verdicts.verdict ? outcome(verdicts.verdict) : ""),
    gates.map(({ gate, verdict, reason }) => h("div", { class: "gate" }, h("b", {}, gate), " ", outcome(verdict), h("p", {}, reason))),
    gates.length ? null : h("p", {}, "No gates were set."));
}

const BOUNDS_MS = [0.1, 0.15, 0.2, 0.3, 0.5, 0.7];
/** Upper bounds of the server's buckets of durations, in milliseconds. */
const durationBounds = (count) => Array.from({ length: count - 1 }, (_, i) => BOUNDS_MS[i % 6] * 10 ** Math.floor(i / 6));

function fillFigures(box, live) {
  const bounds = durationBounds(live.durations.length);
  const times = live.durations.map((count, i) => [i < bounds.length ? `≤ ${duration(bounds[i])}` : `> ${duration(bounds.at(-1))}`, count]);
  const failures = Object.entries(live.failures).sort((a, b) => b[1] - a[1]);
  const rows = (live.batch_rows ?? []).map(([bound, count], i, all) => {
    const low = i ? all[i - 1][0] + 1 : 1;
    return [bound === null ? `≥ ${low}` : low === bound ? `${bound}` : `${low}–${bound}`, count];
  });
  const isText = isNumber(live.first_token_p50_ms) || live.tokens > 0;
  fill(box, barTable("Answered in the last minute", ["Time", "Requests", ""], times),
    isText ? h("div", { class: "panel" }, h("h3", {}, "Tokens"), factTable([
      ["Written", `${figure(live.tokens)} · ${figure(live.tokens_per_s)} /s`],
      ["First token", `${duration(live.first_token_p50_ms)} at the median`],
      ["Next token", `${duration(live.between_tokens_p50_ms)} at the median`],
      ["Prompts", `${figure(live.prompt_tokens)}, of which ${figure(live.reused_tokens)} were still known`]]))
      : barTable("Rows in a batch", ["Rows", "Runs", ""], rows),
    failures.length ? barTable("Failures", ["Reason", "Requests", ""], failures, { kind: "fail" })
      : h("div", { class: "panel" }, h("h3", {}, "Failures"), h("p", {}, "None.")),
    h("div", { class: "panel" }, h("h3", {}, "Where time goes"), factTable([
      ["Waiting now", figure(live.queued ?? 0)], ["Running now", figure(live.running ?? 0)],
      ["In the queue", `${duration(live.queue_p50_ms)} at the median`],
      isText ? ["", null] : ["In the engine", `${duration(live.compute_p50_ms)} a run, at the median`],
      isText ? ["", null] : ["Padding", `${percent(live.padding_share)} of what was run`]])));
}

function codeBlock(title, text) {
  const copy = h("button", { type: "button", class: "second", "aria-label": `Copy: ${title}` }, "Copy");
  const shown = h("pre", { tabindex: "0", "aria-label": title }, text);
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
    } catch { // no permission, or no secure context: selected, so that the keyboard can copy it
      getSelection().selectAllChildren(shown);
      copy.textContent = "Selected";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 1500);
  });
  return h("div", {}, h("p", {}, title), h("div", { class: "code" }, copy, shown));
}

function curl(path, body, { type = "application/json", more = "" } = {}) {
  const key = apiKey ? ' \\\n  -H "authorization: Bearer $EDGESMITH_KEY"' : "";
  const data = body.startsWith("@") ? `--data-binary ${body}` : `-d '${body.replaceAll("'", "'\\''")}'`;
  return `curl ${more}${location.origin}${location.pathname}${path}${key} \\\n  -H 'content-type: ${type}' \\\n  ${data}`;
}

function fillCurl(box, model) {
  const examples = [];
  if (model.is_language_model && model.can_generate !== false) {
    const messages = [{ role: "user", content: "What is the capital of France?" }];
    examples.push(["Chat, as it is written", curl("v1/chat/completions", JSON.stringify({ model: openaiName(model), messages, max_tokens: 64, stream: true }), { more: "-N " })],
      ["Completion", curl("v1/completions", JSON.stringify({ model: openaiName(model), prompt: "The capital of France is", max_tokens: 16 }))]);
  }
  const vectors = model.can_embed || (model.has_task && model.task === "feature-extraction");
  if (vectors) examples.push(["Embeddings", curl("v1/embeddings", JSON.stringify({ model: openaiName(model), input: ["one text", "another text"] }))]);
  if (model.has_task && model.task === "text-classification")
    examples.push(["A text", curl(predictPath(model), "A text to classify", { type: "text/plain" })]);
  if (model.has_task && model.task === "token-classification")
    examples.push(["A text", curl(predictPath(model), "A text with names in it", { type: "text/plain" })]);
  if (model.has_task && model.task === "image-classification")
    examples.push(["A picture", curl(predictPath(model), "@picture.jpg", { type: "image/jpeg" })]);
  if (!model.is_language_model) {
    const sample = sampleRequest(model);
    const isLong = sample.inputs.some((one) => one.data.length > 32);
    examples.push(["Tensors, by the Open Inference Protocol", curl(inferPath(model), isLong ? "@request.json" : JSON.stringify(sample))]);
  }
  fill(box, examples.map(([title, text]) => codeBlock(title, text)));
}
