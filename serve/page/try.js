// Forms that send one request to the chosen model.

const field = (id, label, control) => [h("label", { for: id }, label), Object.assign(control, { id })];

/** A form with a button; `run` gets an AbortSignal and the element for its answer. */
function tryForm(verb, fields, run) {
  const output = h("div", { "aria-live": "polite", "aria-label": "Answer", role: "region" });
  const button = h("button", { type: "submit" }, verb);
  const stop = h("button", { type: "button", class: "second", hidden: true }, "Stop");
  let controller = null;
  stop.addEventListener("click", () => controller?.abort());
  const submit = async (event) => {
    event.preventDefault();
    controller = new AbortController();
    button.disabled = true;
    stop.hidden = false;
    output.setAttribute("aria-busy", "true");
    try {
      await run(output, controller.signal);
    } catch (error) {
      if (error.name !== "AbortError") {
        const old = output.querySelector(".answer")?.textContent ? [...output.children] : [];
        fill(output, old, h("p", { class: "error", role: "alert" }, error.message));
      }
    } finally {
      button.disabled = false;
      stop.hidden = true;
      output.removeAttribute("aria-busy");
    }
  };
  return h("form", { submit }, fields, h("div", { class: "row" }, button, stop), output);
}

// Names of models are of letters, digits, '.', '_' and '-'. The version is named where there are several.
const predictPath = (model) => `predict/${model.name}${model.isOnly ? "" : `/versions/${model.version}`}`;
const inferPath = (model) => `v2/models/${model.name}/versions/${model.version}/infer`;
const openaiName = (model) => (model.isOnly ? model.name : `${model.name}:${model.version}`);

function tryTexts(model) {
  const text = h("textarea", { rows: 4, required: true, placeholder: "Type a text" });
  const pair = h("textarea", { rows: 2, placeholder: "Only for models that judge two texts together" });
  const second = h("details", {}, h("summary", {}, "A second text"), field("try-pair", "Text that belongs to the first", pair));
  return tryForm("Classify", [field("try-text", "Text", text), second], async (output, signal) => {
    const started = performance.now();
    const answer = pair.value
      ? await sendJson(predictPath(model), { text: text.value, text_pair: pair.value }, { signal })
      : await send(predictPath(model), { method: "POST", body: text.value, type: "text/plain; charset=utf-8", signal });
    const said = await answer.json();
    fill(output, showPrediction(said), showHeaders(answer, started));
  });
}

function tryEntities(model) {
  const text = h("textarea", { rows: 4, required: true, placeholder: "Type a text" });
  return tryForm("Find", [field("try-text", "Text", text)], async (output, signal) => {
    const started = performance.now(), asked = text.value;
    const answer = await send(predictPath(model), { method: "POST", body: asked, type: "text/plain; charset=utf-8", signal });
    const said = await answer.json();
    fill(output, showEntities(asked, said.predictions[0].entities), showHeaders(answer, started));
  });
}

function tryVectors(model) {
  const one = h("textarea", { rows: 3, required: true }), two = h("textarea", { rows: 3, required: true });
  return tryForm("Compare", [field("try-one", "One text", one), field("try-two", "Another text", two)], async (output, signal) => {
    const started = performance.now();
    const answer = await sendJson("v1/embeddings", { model: openaiName(model), input: [one.value, two.value] }, { signal });
    const said = await answer.json();
    fill(output, showCosine(said.data.map((row) => row.embedding)), showHeaders(answer, started));
  });
}

function tryImage(model) {
  const file = h("input", { type: "file", accept: "image/*", required: true });
  const preview = h("img", { class: "preview", alt: "The chosen picture", hidden: true });
  file.addEventListener("change", () => {
    URL.revokeObjectURL(preview.src);
    preview.hidden = !file.files.length;
    if (file.files.length) preview.src = URL.createObjectURL(file.files[0]);
  });
  return tryForm("Classify", [field("try-image", "Picture", file), preview], async (output, signal) => {
    const started = performance.now();
    const picture = file.files[0];
    const answer = await send(predictPath(model), { method: "POST", body: picture, type: picture.type || "application/octet-stream", signal });
    fill(output, showPrediction(await answer.json()), showHeaders(answer, started));
  });
}

/** A request of zeros that the model takes: free axes become 1, the first one too. */
function sampleRequest(model) {
  const inputs = (model.inputs ?? []).map(({ name, datatype, shape }) => {
    const sizes = shape.map((size) => (isNumber(size) && size > 0 ? size : 1));
    const length = sizes.reduce((a, b) => a * b, 1);
    const value = datatype === "BYTES" ? "" : datatype === "BOOL" ? false : 0;
    return { name, datatype, shape: sizes, data: new Array(Math.min(length, 4096)).fill(value) };
  });
  return { inputs };
}

function tryTensors(model) {
  const sample = sampleRequest(model);
  const text = h("textarea", { class: "mono", rows: 10, spellcheck: "false", required: true });
  text.value = JSON.stringify(sample, null, 1).replace(/\[[-\d.,\s]*\]/g, (list) => list.replace(/\s+/g, " "));
  return tryForm("Infer", [field("try-tensors", "Tensors, as the Open Inference Protocol writes them", text)], async (output, signal) => {
    const started = performance.now();
    const answer = await send(inferPath(model), { method: "POST", body: text.value, type: "application/json", signal });
    const said = await answer.json();
    const rows = (said.outputs ?? []).map((one) => [one.name, one.datatype, one.shape.join(" × "),
      `${one.data.slice(0, 8).map((value) => (isNumber(value) ? Number(value.toPrecision(5)) : value)).join(", ")}${one.data.length > 8 ? ", …" : ""}`]);
    fill(output, h("div", { class: "wide", tabindex: "0" }, table(["Output", "Type", "Shape", "First values"], rows, { numText: 4 })),
      h("details", {}, h("summary", {}, "The whole answer"), showJson(said)), showHeaders(answer, started));
  });
}

/** Write the pieces of a streamed answer, with the time to its first token and its speed. */
async function showStream(path, body, output, signal, pieceOf) {
  const shown = h("p", { class: "answer" }), note = h("p", { class: "note" });
  fill(output, shown, note);
  const started = performance.now();
  let firstMs = null, usage = null, pieces = 0, finish = "", text = "";
  const tell = () => {
    const tokens = usage?.completion_tokens ?? pieces, spent = performance.now() - started - firstMs;
    const speed = tokens > 1 && spent > 0 ? ` · ${figure((1000 * (tokens - 1)) / spent)} tokens/s` : "";
    note.textContent = `${tokens} tokens${speed} · first after ${duration(firstMs)}${finish ? ` · ${finish}` : ""}`;
  };
  try {
    const answer = await sendJson(path, { ...body, stream: true, stream_options: { include_usage: true } }, { signal });
    for await (const data of events(answer)) {
      if (data === "[DONE]") break;
      const event = JSON.parse(data);
      if (event.error) throw new Refusal(event.error.message ?? String(event.error), 0);
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      if (!choice) continue;
      const piece = pieceOf(choice) ?? "";
      if (piece) { firstMs ??= performance.now() - started; pieces += 1; text += piece; shown.append(piece); }
      finish = choice.finish_reason ?? finish;
      if (firstMs !== null) tell();
    }
    if (firstMs !== null) tell();
    else note.textContent = `An empty answer${finish ? ` · ${finish}` : ""}`;
  } finally {
    output.dataset.text = text;
  }
  return text;
}

function samplingFields() {
  const tokens = h("input", { type: "number", min: 1, max: 4096, value: 128 });
  const temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0 });
  const read = () => ({ max_tokens: Number(tokens.value), temperature: Number(temperature.value) });
  return [h("div", { class: "fields" }, h("div", {}, field("try-tokens", "Tokens at most", tokens)),
    h("div", {}, field("try-temperature", "Temperature", temperature))), read];
}

function tryChat(model) {
  const text = h("textarea", { rows: 3, required: true, placeholder: "Say something" });
  const system = h("textarea", { rows: 2, placeholder: "Optional" });
  const [fields, read] = samplingFields();
  const past = [], log = h("div");
  const forget = h("button", { type: "button", class: "second", hidden: true, click: () => { past.length = 0; fill(log); forget.hidden = true; } }, "New conversation");
  const form = tryForm("Send", [field("try-chat", "Message", text), fields,
    h("details", {}, h("summary", {}, "System message"), field("try-system", "What the model is told first", system))], async (output, signal) => {
    const said = text.value;
    const first = system.value ? [{ role: "system", content: system.value }] : [];
    const messages = [...first, ...past, { role: "user", content: said }];
    const answer = await showStream("v1/chat/completions", { model: openaiName(model), messages, ...read() }, output, signal, (choice) => choice.delta?.content);
    past.push({ role: "user", content: said }, { role: "assistant", content: answer });
    forget.hidden = false;
    fill(log, past.slice(0, -2).map(({ role, content }) => h("p", {}, h("b", {}, role === "user" ? "You: " : "Model: "), content)));
  });
  return h("div", {}, log, form, forget);
}

function tryCompletion(model) {
  const text = h("textarea", { rows: 4, required: true, placeholder: "The beginning of a text" });
  const [fields, read] = samplingFields();
  return tryForm("Continue", [field("try-prompt", "Prompt", text), fields], (output, signal) =>
    showStream("v1/completions", { model: openaiName(model), prompt: text.value, ...read() }, output, signal, (choice) => choice.text));
}

/** The ways to try a model, the best first: [name, function that makes the form]. */
function waysToTry(model) {
  if (model.is_language_model) {
    const ways = [];
    if (model.can_generate !== false) ways.push(["Chat", tryChat], ["Completion", tryCompletion]);
    if (model.can_embed) ways.push(["Embeddings", tryVectors]);
    return ways;
  }
  const ways = [];
  if (model.has_task && model.task === "text-classification") ways.push(["Text", tryTexts]);
  if (model.has_task && model.task === "token-classification") ways.push(["Text", tryEntities]);
  if (model.has_task && model.task === "feature-extraction") ways.push(["Two texts", tryVectors]);
  if (model.has_task && model.task === "image-classification") ways.push(["Picture", tryImage]);
  return [...ways, ["Raw tensors", tryTensors]];
}

function fillTry(box, model) {
  const ways = waysToTry(model), place = h("div");
  const choose = (chosen) => {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === chosen)));
    buttons.forEach((button, i) => { button.className = i === chosen ? "" : "second"; });
    fill(place, ways[chosen][1](model));
  };
  const buttons = ways.map(([name], i) => h("button", { type: "button", click: () => choose(i) }, name));
  fill(box, h("h3", {}, "Try it"), ways.length > 1 ? h("div", { class: "tabs" }, buttons) : null, place);
  if (ways.length) choose(0);
}
