// Small drawings without a library.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A line over its area; values that are missing leave a gap. */
function spark(values, label) {
  const width = 120, height = 24, top = Math.max(...values.filter(isNumber), 1e-9);
  const points = values.map((value, i) => isNumber(value)
    ? [(width * i) / Math.max(1, values.length - 1), height - (height * value) / top] : null);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": label });
  let run = [];
  const flush = () => {
    if (run.length > 1) {
      const line = run.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
      const [first, last] = [run[0][0].toFixed(1), run.at(-1)[0].toFixed(1)];
      drawn.append(svg("polygon", { class: "under", points: `${first},${height} ${line} ${last},${height}` }),
        svg("polyline", { class: "line", points: line }));
    }
    run = [];
  };
  for (const point of points) point ? run.push(point) : flush();
  flush();
  return drawn;
}

/** Counts as rows of bars: `rows` are [name, count]. Empty rows at both ends are left out. */
function barTable(caption, head, rows, { kind = "", write = figure } = {}) {
  const used = rows.map(([, count]) => count > 0);
  const shown = rows.slice(used.indexOf(true), used.lastIndexOf(true) + 1);
  const most = Math.max(1e-9, ...shown.map(([, count]) => count));
  const body = used.includes(true)
    ? table(head, shown.map(([name, count]) => [name, write(count), bar(count / most, kind)]), { label: caption })
    : h("p", {}, "Nothing yet.");
  return h("div", { class: "panel" }, h("h3", {}, caption), body);
}

/** An interval on a common axis, with a mark at what it is compared to. */
function whisker(low, high, [from, to], mark) {
  const place = (value) => `${(100 * Math.min(1, Math.max(0, (value - from) / (to - from || 1)))).toFixed(1)}%`;
  const line = h("span"), tick = h("i");
  line.style.left = place(low);
  line.style.right = `calc(100% - ${place(high)})`;
  tick.style.left = place(mark);
  return h("span", { class: "whisker", "aria-hidden": "true" }, line, tick);
}
