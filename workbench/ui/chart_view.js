// A chart in SVG, from the description that chart_view.py sends. Scales and ticks stand in chart_axes.js, rules and names in chart_names.js.
const SVG = "http://www.w3.org/2000/svg";
const TEXT_COLOR = "var(--jp-ui-font-color1, currentColor)";
const REACH_PX = 40;
const MANY_POINTS = 300;
const pen = document.createElement("canvas").getContext("2d");
pen.font = "12px sans-serif";

function shape(parent, tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

const textWidth = (text) => pen.measureText(text).width;
// Black would vanish in a dark theme: it stands for the colour of the text.
const paint = (color) => (!color || color === "#000000" ? TEXT_COLOR : color);

// The bytes of float64 numbers as an array; a copy, as a view must begin at a multiple of eight.
function numbers(bytes) {
  if (!bytes) return new Float64Array();
  const from = bytes.buffer ?? bytes;
  const begin = bytes.byteOffset ?? 0;
  return new Float64Array(from.slice(begin, begin + bytes.byteLength));
}

const MARKERS = {
  o: (x, y, r) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0`,
  s: (x, y, r) => `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`,
  D: (x, y, r) => `M${x} ${y - r * 1.3}l${r * 1.3} ${r * 1.3}l${-r * 1.3} ${r * 1.3}l${-r * 1.3} ${-r * 1.3}z`,
  "^": (x, y, r) => `M${x} ${y - r * 1.2}l${r * 1.2} ${r * 2.2}h${-r * 2.4}z`,
  v: (x, y, r) => `M${x} ${y + r * 1.2}l${r * 1.2} ${-r * 2.2}h${-r * 2.4}z`,
};

// ---- marks: each draws itself into a group, x and y already in px

function drawLine(group, mark, { x, y }, plot) {
  const runs = [];
  let run = null;
  for (let i = 0; i < x.length; i++) {
    if (!Number.isFinite(x[i]) || !Number.isFinite(y[i])) run = null;
    else if (!run) runs.push((run = [i]));
    else run.push(i);
  }
  const color = paint(mark.color);
  const steps = (i, k) => (k === 0 ? `M${x[i]} ${y[i]}` : mark.step ? `H${x[i]}V${y[i]}` : `L${x[i]} ${y[i]}`);
  for (const each of runs) {
    const path = each.map(steps).join("");
    if (mark.fill) {
      const closed = `${path}V${plot.base}H${x[each[0]]}Z`;
      shape(group, "path", { d: closed, fill: color, "fill-opacity": 0.2, stroke: "none" });
    }
    const dash = mark.dash ? { "stroke-dasharray": "6 4" } : {};
    shape(group, "path", { d: path, fill: "none", stroke: color, "stroke-width": 1.75, "stroke-linejoin": "round", ...dash });
  }
  // A single value between two gaps has no line; it is still a point.
  const marked = mark.marker ? runs.flat() : runs.filter((each) => each.length === 1).flat();
  const draw = MARKERS[mark.marker] ?? MARKERS.o;
  if (marked.length) shape(group, "path", { d: marked.map((i) => draw(x[i], y[i], 3.2)).join(""), fill: color });
}

function byColor(colors, count) {
  if (colors.length < 2) return [[colors[0] ?? "", Array.from({ length: count }, (_, i) => i)]];
  const groups = new Map();
  for (let i = 0; i < count; i++) {
    if (!groups.has(colors[i])) groups.set(colors[i], []);
    groups.get(colors[i]).push(i);
  }
  return [...groups];
}

function drawPoints(group, mark, { x, y }, plot) {
  // A stroke of no length with round ends is a disc: thousands of points are one path.
  const opacity = x.length > MANY_POINTS ? 0.65 : 1;
  for (const [color, places] of byColor(mark.colors, x.length)) {
    const shown = places.filter((i) => Number.isFinite(x[i]) && Number.isFinite(y[i]));
    const d = shown.map((i) => `M${x[i].toFixed(1)} ${y[i].toFixed(1)}h0`).join("");
    const look = { fill: "none", stroke: paint(color), "stroke-width": mark.size, "stroke-linecap": "round" };
    shape(group, "path", { d, ...look, "stroke-opacity": opacity });
  }
  mark.names.forEach((name, i) => name && Number.isFinite(y[i]) && nameAt(plot, name, x[i], y[i]));
}

function drawBars(group, mark, { x, y, half }, plot) {
  for (const [color, places] of byColor(mark.colors, x.length)) {
    const d = places
      .filter((i) => Number.isFinite(x[i]) && Number.isFinite(y[i]))
      .map((i) => `M${x[i] - half} ${plot.base}V${y[i]}h${2 * half}V${plot.base}z`);
    shape(group, "path", { d: d.join(""), fill: paint(color) });
  }
}

// ---- axes

function drawAxes(svg, plot, scales) {
  const axes = shape(svg, "g", { class: "wb-chart-axes" });
  const { left, right, top, bottom } = plot;
  let taken = -Infinity;
  for (const [at, text] of scales.x.ticks((right - left) / 64)) {
    const x = scales.x.at(at);
    if (!(x >= left - 1 && x <= right + 1)) continue;
    shape(axes, "line", { x1: x, x2: x, y1: top, y2: bottom, class: "wb-chart-grid" });
    const half = textWidth(text) / 2;
    if (x - half < taken + 6) continue;
    taken = x + half;
    shape(axes, "text", { x, y: bottom + 16, "text-anchor": "middle" }, text);
  }
  for (const [at, text] of plot.yTicks) {
    const y = scales.y.at(at);
    if (!(y >= top - 1 && y <= bottom + 1)) continue;
    shape(axes, "line", { x1: left, x2: right, y1: y, y2: y, class: "wb-chart-grid" });
    shape(axes, "text", { x: left - 6, y: y + 4, "text-anchor": "end" }, text);
  }
  shape(axes, "path", { d: `M${left} ${top}V${bottom}H${right}`, class: "wb-chart-frame" });
}

function drawDiagonal(group, scales) {
  const low = Math.max(scales.x.low, scales.y.low);
  const high = Math.min(scales.x.high, scales.y.high);
  if (low >= high) return;
  const ends = { x1: scales.x.at(low), x2: scales.x.at(high), y1: scales.y.at(low), y2: scales.y.at(high) };
  shape(group, "line", { ...ends, class: "wb-chart-diagonal" });
}

function drawLegend(parent, marks) {
  marks.filter((mark) => mark.label && mark.kind !== "rule").forEach((mark) => {
    const entry = make(parent, "span", "wb-chart-entry");
    const key = shape(entry, "svg", { width: 22, height: 12, "aria-hidden": "true" });
    const color = paint(mark.color ?? mark.colors[0]);
    if (mark.kind === "bars") shape(key, "rect", { x: 5, y: 1, width: 12, height: 10, fill: color });
    else if (mark.kind === "points") shape(key, "circle", { cx: 11, cy: 6, r: 4, fill: color });
    else {
      const dash = mark.dash ? { "stroke-dasharray": "5 3" } : {};
      shape(key, "line", { x1: 1, x2: 21, y1: 6, y2: 6, stroke: color, "stroke-width": 2, ...dash });
      if (mark.marker) shape(key, "path", { d: (MARKERS[mark.marker] ?? MARKERS.o)(11, 6, 3.2), fill: color });
    }
    make(entry, "span", "", mark.label);
  });
}

// ---- the whole

function readMarks(spec) {
  return spec.marks.map((mark) => (mark.kind === "rule" ? mark : { ...mark, x: numbers(mark.x), y: numbers(mark.y) }));
}

function* valuesOf(marks, axis) {
  for (const mark of marks) {
    if (mark.kind === "rule") {
      if (mark.axis === axis && mark.at !== null) yield mark.at;
    } else if (mark.kind === "bars" && axis === "x") {
      for (const value of mark.x) yield* [value - mark.width / 2, value + mark.width / 2];
    } else yield* mark[axis];
  }
}

function layOut(spec, marks, width, height) {
  const plot = { left: 0, right: width - 10, top: 8, bottom: height - 24, taken: [] };
  const anchored = marks.some((mark) => mark.kind === "bars" || mark.fill);
  const y = makeScale(spec.y, valuesOf(marks, "y"), [plot.bottom, plot.top], anchored);
  plot.yTicks = y.ticks((plot.bottom - plot.top) / 34);
  plot.left = 12 + Math.max(16, ...plot.yTicks.map(([, text]) => textWidth(text)));
  plot.base = y.base;
  const x = makeScale(spec.x, valuesOf(marks, "x"), [plot.left, plot.right], false);
  return { plot, scales: { x, y } };
}

// Every point in px, mark by mark, for the mouse and the keyboard.
function placePoints(marks, scales, plot) {
  return marks.map((mark) => {
    if (mark.kind === "rule") return null;
    const x = Float64Array.from(mark.x, (value) => scales.x.at(value));
    // An empty bin of a histogram stands on the axis, which has no place for 0 when it is logarithmic.
    const floor = mark.step || mark.fill ? (value) => (value <= 0 && scales.y.log ? plot.base : scales.y.at(value)) : scales.y.at;
    const y = Float64Array.from(mark.y, (value) => floor(value));
    const half = mark.kind === "bars" ? Math.max(0.5, Math.abs(scales.x.at(mark.width) - scales.x.at(0)) / 2) : 0;
    const inside = (i) => x[i] >= plot.left - 1 && x[i] <= plot.right + 1 && y[i] >= plot.top - 1 && y[i] <= plot.bottom + 1;
    const order = Array.from(x.keys()).filter(inside).sort((a, b) => x[a] - x[b]);
    return { x, y, half, order };
  });
}

function nearest(marks, placed, px, py) {
  let [best, found] = [REACH_PX ** 2, null];
  placed.forEach((points, m) => {
    if (!points) return;
    const flat = marks[m].kind === "bars" || marks[m].step || marks[m].fill ? 0.02 : 1; // a column is hit anywhere
    for (const i of points.order) {
      const distance = (points.x[i] - px) ** 2 + flat * (points.y[i] - py) ** 2;
      if (distance < best) [best, found] = [distance, [m, i]];
    }
  });
  return found;
}

function pointText(spec, mark, i) {
  const own = mark.texts[i];
  const place = `${spec.x.label}: ${numberText(mark.x[i])}\n${spec.y.label}: ${numberText(mark.y[i])}`;
  return own || (mark.label ? `${mark.label}\n${place}` : place);
}

function render({ model, el }) {
  const root = make(el, "div", "wb-chart");
  root.tabIndex = 0;
  root.setAttribute("role", "group");
  root.setAttribute("aria-roledescription", "chart");
  const [title, legend, yLabel] = ["title", "legend", "y-label"].map((name) => make(root, "div", `wb-chart-${name}`));
  const holder = make(root, "div", "wb-chart-plot");
  const xLabel = make(root, "div", "wb-chart-x-label");
  const tip = make(root, "div", "wb-chart-tip");
  const live = make(root, "div", "wb-chart-live");
  live.setAttribute("aria-live", "polite");
  let [spec, marks, placed, overlay, cursor, drawnWidth] = [null, [], [], null, null, 0];

  function read() {
    const given = model.get("spec");
    spec = given?.marks ? given : null;
    marks = spec ? readMarks(spec) : [];
    cursor = null;
    root.style.display = spec ? "" : "none";
    if (!spec) return;
    title.textContent = spec.title;
    yLabel.textContent = spec.y.label;
    xLabel.textContent = spec.x.label;
    legend.replaceChildren();
    drawLegend(legend, marks);
    const count = marks.reduce((sum, mark) => sum + (mark.x?.length ?? 0), 0);
    root.setAttribute("aria-label", `${spec.title}: ${spec.y.label} by ${spec.x.label}, ${count} points`);
  }

  // In whole px, rounded down: a picture that is half a px wider than its place brings a scroll bar.
  const room = () => Math.floor(root.getBoundingClientRect().width);

  function draw() {
    holder.replaceChildren();
    tip.style.display = "none";
    const width = room();
    if (!spec || width < 60) return;
    drawnWidth = width;
    const around = [title, legend, yLabel, xLabel].reduce((sum, part) => sum + part.offsetHeight, 0);
    const height = Math.max(120, spec.height - around);
    const svg = shape(holder, "svg", { width, height, "aria-hidden": "true" });
    const { plot, scales } = layOut(spec, marks, width, height);
    drawAxes(svg, plot, scales);
    const clip = `wb-clip-${Math.random().toString(36).slice(2)}`;
    const area = { x: plot.left - 4, y: plot.top - 4, width: plot.right - plot.left + 8, height: plot.bottom - plot.top + 5 };
    shape(shape(svg, "clipPath", { id: clip }), "rect", area);
    const inside = shape(svg, "g", { "clip-path": `url(#${clip})` });
    plot.names = shape(svg, "g", {});
    if (spec.diagonal) drawDiagonal(inside, scales);
    placed = placePoints(marks, scales, plot);
    const painters = { line: drawLine, points: drawPoints, bars: drawBars };
    plot.curves = marks.flatMap((mark, m) => (mark.kind === "line" && !mark.fill ? [{ x: placed[m].x, y: placed[m].y, step: mark.step }] : []));
    drawRules(inside, marks, scales, plot);
    marks.forEach((mark, m) => mark.kind !== "rule" && painters[mark.kind](inside, mark, placed[m], plot));
    overlay = shape(svg, "g", {});
    showChoice();
  }

  function ring(place, className) {
    const points = place && placed[place[0]];
    if (!points || !(place[1] < points.x.length) || !Number.isFinite(points.y[place[1]])) return;
    const at = { cx: points.x[place[1]], cy: points.y[place[1]], r: 6 };
    shape(overlay, "circle", { ...at, class: `${className} wb-chart-halo` });
    shape(overlay, "circle", { ...at, class: className });
  }

  function showChoice() {
    overlay?.replaceChildren();
    const selected = model.get("selected");
    if (selected[0] >= 0 && model.get("clickable")) ring(selected, "wb-chart-chosen");
    ring(cursor, "wb-chart-cursor");
  }

  function point(place, speak) {
    cursor = place;
    showChoice();
    root.classList.toggle("wb-chart-pointing", Boolean(place) && model.get("clickable"));
    if (!place) return void (tip.style.display = "none");
    const [x, y] = [placed[place[0]].x[place[1]], placed[place[0]].y[place[1]]];
    tip.textContent = pointText(spec, marks[place[0]], place[1]);
    if (speak) live.textContent = tip.textContent;
    tip.style.display = "block";
    const free = root.clientWidth - tip.offsetWidth - 4;
    const beside = x + 14 + tip.offsetWidth > root.clientWidth ? x - 14 - tip.offsetWidth : x + 14;
    tip.style.left = `${Math.max(0, Math.min(beside, free))}px`;
    tip.style.top = `${Math.max(0, holder.offsetTop + y - tip.offsetHeight - 10)}px`;
  }

  function choose(place) {
    if (!place || !model.get("clickable")) return;
    model.set("selected", place);
    model.save_changes();
  }

  function under(event) {
    const box = holder.getBoundingClientRect();
    return nearest(marks, placed, event.clientX - box.left, event.clientY - box.top);
  }

  function step(key) {
    const known = placed.map((points, m) => (points?.order.length ? m : -1)).filter((m) => m >= 0);
    if (!known.length) return null;
    const selected = model.get("selected");
    const from = cursor ?? (known.includes(selected[0]) ? selected : null);
    if (!from) return [known[0], placed[known[0]].order[0]];
    const [m, i] = from;
    const order = placed[m].order;
    const place = Math.max(0, order.indexOf(i));
    const along = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: order.length - 1 }[key];
    if (along !== undefined) return [m, order[Math.min(Math.max(along, 0), order.length - 1)]];
    const other = known[(known.indexOf(m) + (key === "ArrowDown" ? 1 : known.length - 1)) % known.length];
    const distance = (k) => Math.abs(placed[other].x[k] - placed[m].x[i]);
    return [other, placed[other].order.reduce((best, k) => (distance(k) < distance(best) ? k : best))];
  }

  holder.onmousemove = (event) => point(under(event), false);
  holder.onmouseleave = () => point(null, false);
  holder.onclick = (event) => choose(under(event));
  root.onblur = () => point(null, false);
  root.onkeydown = (event) => {
    if (event.key === "Enter" || event.key === " ") choose(cursor);
    else if (event.key === "Escape") point(null, false);
    else if (/^(Arrow|Home$|End$)/.test(event.key)) point(step(event.key), true);
    else return;
    event.preventDefault();
    event.stopPropagation(); // Jupyter moves between cells with the same keys.
  };
  const redraw = () => { read(); draw(); };
  const watched = [["change:spec", redraw], ["change:selected", showChoice], ["change:clickable", showChoice]];
  watched.forEach(([name, callback]) => model.on(name, callback));
  const observer = new ResizeObserver(() => room() !== drawnWidth && draw());
  observer.observe(root);
  redraw();
  return () => {
    observer.disconnect();
    watched.forEach(([name, callback]) => model.off(name, callback));
  };
}

export default { render };
