// Rules across a chart, and the names of rules and points: where there is room, off each other and off the curves.

const NAME_AIR_PX = 3; // on either side of a name: two that touch read as one word

const overlaps = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

const boxOf = (left, baseline, width) => ({
  left: left - NAME_AIR_PX, right: left + width + NAME_AIR_PX, top: baseline - 11, bottom: baseline + 3,
});

function isFree(plot, box) {
  const inside = box.left + NAME_AIR_PX >= plot.left && box.right - NAME_AIR_PX <= plot.right && box.top >= plot.top && box.bottom <= plot.bottom;
  return inside && !plot.taken.some((other) => overlaps(box, other));
}

// Writes a name if its place is free and inside the plot, and keeps the place.
function writeName(plot, text, left, baseline, width) {
  const box = boxOf(left, baseline, width);
  if (!isFree(plot, box)) return false;
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

// Whether a piece of a line goes through a box: it is cut off at the box's sides until nothing is left.
function pieceCrosses(x0, y0, x1, y1, box) {
  if (Math.max(x0, x1) < box.left || Math.min(x0, x1) > box.right) return false;
  if (Math.max(y0, y1) < box.top || Math.min(y0, y1) > box.bottom) return false;
  if (x0 === x1 || y0 === y1) return true;
  const [atLeft, atRight] = [(box.left - x0) / (x1 - x0), (box.right - x0) / (x1 - x0)];
  const [atTop, atBottom] = [(box.top - y0) / (y1 - y0), (box.bottom - y0) / (y1 - y0)];
  const first = Math.max(0, Math.min(atLeft, atRight), Math.min(atTop, atBottom));
  const last = Math.min(1, Math.max(atLeft, atRight), Math.max(atTop, atBottom));
  return first <= last;
}

// How many pieces of a drawn line go through a box; one with steps goes across first, then up or down.
function crossings({ x, y, step }, box) {
  let count = 0;
  for (let i = 1; i < x.length; i++) {
    if (!Number.isFinite(x[i] + x[i - 1]) || !Number.isFinite(y[i] + y[i - 1])) continue;
    if (step) {
      count += pieceCrosses(x[i - 1], y[i - 1], x[i], y[i - 1], box);
      count += pieceCrosses(x[i], y[i - 1], x[i], y[i], box);
    } else count += pieceCrosses(x[i - 1], y[i - 1], x[i], y[i], box);
  }
  return count;
}

// The name of a line across the plot, above or below it: where the fewest pieces of curves run through it, far right.
function nameAcross(plot, text, at) {
  const width = textWidth(text);
  let [best, fewest] = [null, Infinity];
  for (let left = plot.right - width - 10; left >= plot.left + 6 && fewest > 0; left -= 6) {
    for (const baseline of [at - 4, at + 14]) {
      const box = boxOf(left, baseline, width);
      if (!isFree(plot, box)) continue;
      const count = plot.curves.reduce((sum, curve) => sum + crossings(curve, box), 0);
      if (count < fewest) [best, fewest] = [[left, baseline], count];
    }
  }
  return best !== null && writeName(plot, text, ...best, width);
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
