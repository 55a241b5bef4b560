// What is chosen, and the figures that are read each second.

const PERIOD_MS = 1000, MAX_POINTS = 120;
const nameOf = (model) => `${model.name}/${model.version}`;
const state = { models: [], live: null, chosen: "", known: "", past: [] };

function tile(name, value, unit, points, isAlarm = false) {
  return h("div", { class: isAlarm ? "tile alarm" : "tile" }, h("dt", {}, name),
    h("dd", {}, value, unit ? h("small", {}, ` ${unit}`) : null, points ? spark(points, `${name}, the last two minutes`) : null));
}

function fillTiles(live) {
  const { all, process } = live, past = state.past;
  const queued = live.models.reduce((sum, model) => sum + (model.queued ?? 0), 0);
  const tiles = [
    tile("Answered a second", figure(past.at(-1)?.rate ?? all.answered_per_s), "/s", past.map((one) => one.rate)),
    tile("Half are faster than", duration(all.p50_ms), "", past.map((one) => one.p50)),
    tile("99 % are faster than", duration(all.p99_ms), "", past.map((one) => one.p99)),
    tile("Waiting", figure(queued), "", past.map((one) => one.queued)),
    tile("Processor", figure(past.at(-1)?.cpu), "cores", past.map((one) => one.cpu)),
    tile("Memory", bytes(process.resident_bytes), "", past.map((one) => one.memory)),
  ];
  if (live.models.some((model) => model.tokens > 0))
    tiles.push(tile("Tokens a second", figure(past.at(-1)?.tokens), "/s", past.map((one) => one.tokens)));
  if (isNumber(process.connections)) tiles.push(tile("Connections", figure(process.connections), "", past.map((one) => one.connections)));
  fill(byId("tiles"), tiles);
  const failures = Object.entries(all.failures).sort((a, b) => b[1] - a[1]);
  byId("failures").textContent = `${figure(all.answered)} answered since the start` + (failures.length
    ? `; not answered: ${failures.map(([reason, count]) => `${figure(count)} ${reason}`).join(", ")}.` : ", none failed.");
}

/** Keep what the sparklines show: changes between two readings. */
function remember(live) {
  const last = state.live, apart = last ? live.now_s - last.now_s : 0;
  const change = (now, before) => (apart > 0 ? Math.max(0, now - before) / apart : null);
  state.past.push({
    rate: last ? change(live.all.answered, last.all.answered) : null,
    tokens: last ? change(live.all.tokens, last.all.tokens) : null,
    cpu: last ? change(live.process.cpu_s, last.process.cpu_s) : null,
    p50: live.all.p50_ms, p99: live.all.p99_ms, memory: live.process.resident_bytes,
    queued: live.models.reduce((sum, model) => sum + (model.queued ?? 0), 0),
    connections: live.process.connections,
  });
  if (state.past.length > MAX_POINTS) state.past.shift();
  state.live = live;
}

function fillModels(live) {
  const focused = document.activeElement?.dataset?.model;
  const facts = new Map(state.models.map((model) => [nameOf(model), model]));
  const rows = live.models.map((model) => {
    const known = facts.get(nameOf(model)) ?? {}, isChosen = nameOf(model) === state.chosen;
    const pick = h("button", { type: "button", class: "link", "data-model": nameOf(model), "aria-pressed": String(isChosen),
      click: () => choose(nameOf(model)) }, model.name);
    return [pick, model.version, statePill(model.state), known.task ?? "–", known.precision ?? "–", bytes(known.size_bytes),
      figure(model.answered_per_s), duration(model.p50_ms), duration(model.p99_ms), figure(model.queued ?? 0)];
  });
  const head = ["Model", "Version", "State", "Task", "Precision", "Size", "Answers/s", "p50", "p99", "Waiting"];
  fill(byId("models"), rows.length ? table(head, rows, { label: "Models", numText: 5,
    rowAttributes: (i) => (nameOf(live.models[i]) === state.chosen ? { class: "chosen" } : {}) }) : h("p", {}, "No model is loaded."));
  if (focused) byId("models").querySelector(`[data-model="${CSS.escape(focused)}"]`)?.focus();
}

function choose(name) {
  const model = state.models.find((one) => nameOf(one) === name);
  if (!model) return;
  state.chosen = name;
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  const newest = state.models.filter((one) => one.name === model.name && one.state === "READY");
  const chosen = { ...model, isOnly: newest.length < 2 };
  byId("model").hidden = false;
  fill(byId("h-model"), `${model.name} `, h("small", { class: "note" }, `version ${model.version}`), statePill(model.state));
  byId("why").hidden = !model.reason;
  byId("why").textContent = model.reason;
  const isReady = model.state === "READY";
  if (isReady) fillTry(byId("try"), chosen);
  else fill(byId("try"), h("h3", {}, "Try it"), h("p", {}, "It does not answer now."));
  fillFacts(byId("facts"), chosen);
  fillVerdicts(byId("verdicts"), model.verdicts);
  fillCurl(byId("curl"), chosen);
  if (state.live) fillLive(state.live);
}

function fillLive(live) {
  fillTiles(live);
  fillModels(live);
  const chosen = live.models.find((model) => nameOf(model) === state.chosen);
  if (!chosen) { byId("model").hidden = true; return; }
  fillFigures(byId("figures"), chosen);
  fillTraffic(byId("traffic"), live.models.filter((one) => one.name === chosen.name && one.traffic).map((one) => [one.version, one.traffic]));
  fillDrift(byId("drift"), chosen.drift);
}

/** Read the models' facts again when one came, went or changed; the form that is being filled in stays. */
async function readModels(live) {
  const known = JSON.stringify([apiKey !== "", live.models.map((one) => [one.name, one.version, one.state, one.reason])]);
  if (known === state.known) return;
  const before = JSON.stringify(state.models.find((one) => nameOf(one) === state.chosen));
  state.models = (await (await send("models.json")).json()).models;
  state.known = known;
  const after = state.models.find((one) => nameOf(one) === state.chosen);
  if (after && JSON.stringify(after) === before) return;
  const wanted = decodeURIComponent(location.hash.slice(1));
  const first = after ?? state.models.find((one) => nameOf(one) === wanted) ?? state.models.find((one) => one.state === "READY") ?? state.models[0];
  if (first) choose(nameOf(first));
}

async function read() {
  try {
    const live = await (await send("live.json")).json();
    byId("ask").hidden = true;
    byId("lost").hidden = true;
    const [text, kind] = live.is_draining ? ["draining", "open"] : ["answering", "good"];
    byId("state").className = `pill ${kind}`;
    byId("state").textContent = text;
    byId("since").textContent = `for ${since(live.uptime_s)}`;
    remember(live);
    await readModels(live);
    fillLive(live);
  } catch (error) {
    byId("state").className = "pill bad";
    byId("state").textContent = error.status === 401 ? "locked" : "not reached";
    byId("lost").hidden = error.status === 401;
    byId("lost").textContent = error instanceof TypeError ? "The server cannot be reached. Its figures are old." : error.message;
    if (error.status === 401) return;
  }
  setTimeout(tick, PERIOD_MS);
}

function tick() {
  if (document.hidden) document.addEventListener("visibilitychange", tick, { once: true });
  else read();
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  apiKey = byId("key").value.trim();
  byId("key").value = "";
  read();
});
read();
