// Rules across a chart, and the names of rules and points: where there is room, off each other and off the curves.

const NAME_AIR_PX = 3; // on either side of a name: two that touch read as one word

const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

const boxOf = (left, baseline, width) => ({
  left: left - NAME_AIR_PX, right: left + width + NAME_AIR_PX, top: baseline - 11, bottom: baseline + 3,
});

// Writes a name if its place is free and inside the plot, and keeps the place.
function writeName(plot, text, left, baseline, width) {
  const box = boxOf(left, baseline, width);
  const inside = left >= plot.left && left + width <= plot.right && box.top >= plot.top && box.bottom <= plot.bottom;
  if (!inside || plot.taken.some((other) => overlaps(box, other))) return false;
  plot.taken.push(box);
  shape(plot.names, "text", { x: left, y: baseline, class: "wb-chart-name" }, text);
  return true;
}

// Names and rules' labels keep out of each other's way: the first free place of a few.
function nameAt(plot, text, x, y) {
  const width = textWidth(text);
  const sides = [[x + 6, y - 4], [x + 6, y + 14], [x - 6 - width, y - 4], [x - 6 - width, y + 14]];
  const further = [18, -18, 32, -32, 46].flatMap((down) => [[x + 6, y - 4 + down], [x - 6 - width, y - 4 + down]]);
  return [...sides, ...further].some(([left, baseline]) => writeName(plot, text, left, baseline, width));
}

function drawRule(group, mark, at, plot) {
  const across = mark.axis === "x" ? { x1: at, x2: at, y1: plot.top, y2: plot.bottom } : { x1: plot.left, x2: plot.right, y1: at, y2: at };
  const dash = mark.dash ? { "stroke-dasharray": "4 4" } : {};
  shape(group, "line", { ...across, stroke: paint(mark.color), "stroke-width": 1.25, ...dash });
}

// Whether a line of points goes through a box: each piece is cut off at the box's four sides until nothing is left.
function crosses({ x, y }, box) {
  for (let i = 1; i < x.length; i++) {
    const [dx, dy] = [x[i] - x[i - 1], y[i] - y[i - 1]];
    if (!Number.isFinite(dx) || !Number.isFinite(dy)) continue;
    let [first, last] = [0, 1];
    const sides = [[-dx, x[i - 1] - box.left], [dx, box.right - x[i - 1]], [-dy, y[i - 1] - box.top], [dy, box.bottom - y[i - 1]]];
    for (const [speed, room] of sides) {
      if (speed === 0) last = room < 0 ? -1 : last;
      else if (speed < 0) first = Math.max(first, room / speed);
      else last = Math.min(last, room / speed);
    }
    if (first <= last) return true;
  }
  return false;
}

// The name of a line across the plot, above or below it, as far right as no curve runs through it.
function nameAcross(plot, text, at) {
  const width = textWidth(text);
  for (let left = plot.right - width - 10; left >= plot.left + 6; left -= 12) {
    for (const baseline of [at - 4, at + 14]) {
      if (!plot.curves.some((curve) => crosses(curve, boxOf(left, baseline, width))) && writeName(plot, text, left, baseline, width)) return true;
    }
  }
  return false;
}

function nameRule(mark, at, plot) {
  if (mark.axis === "y" && nameAcross(plot, mark.label, at)) return;
  const [x, y] = mark.axis === "x" ? [at, plot.top + 16] : [plot.right - textWidth(mark.label) - 10, at];
  if (nameAt(plot, mark.label, x, y)) return;
  plot.taken = plot.taken.filter((box) => !box.line); // between lines that stand close a name may cross one
  nameAt(plot, mark.label, x, y);
}

// Labels are written when every line is there, so that they can keep away from the others' lines.
function drawRules(group, marks, scales, plot) {
  const places = marks.filter((mark) => mark.kind === "rule" && mark.at !== null).map((mark) => [mark, scales[mark.axis].at(mark.at)]);
  const rules = places.filter(([, at]) => Number.isFinite(at));
  rules.forEach(([mark, at]) => drawRule(group, mark, at, plot));
  const lines = rules.filter(([mark]) => mark.axis === "x");
  plot.taken.push(...lines.map(([, at]) => ({ left: at - 2, right: at + 2, top: plot.top, bottom: plot.bottom, line: true })));
  rules.filter(([mark]) => mark.label).forEach(([mark, at]) => nameRule(mark, at, plot));
  plot.taken = plot.taken.filter((box) => !box.line);
}
