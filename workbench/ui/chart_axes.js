// Scales, ticks and numbers of a chart: plain functions, put in front of chart_view.js. They touch no page.
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const SI = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]];

function powerText(exponent) {
  const digits = [...String(Math.abs(exponent))].map((digit) => SUPERSCRIPTS[digit]).join("");
  return `10${exponent < 0 ? "⁻" : ""}${digits}`;
}

// 0.00012 -> "1.2×10⁻⁴": four significant digits, for tooltips.
function numberText(value) {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "not a number" : value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) {
    const exponent = Math.floor(Math.log10(size) + 1e-12);
    return `${Number((value / 10 ** exponent).toPrecision(4))}×${powerText(exponent)}`;
  }
  return String(Number(value.toPrecision(Number.isInteger(value) ? 7 : 4)));
}

function linearTicks(low, high, most) {
  const rough = (high - low) / Math.max(most, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  const ticks = [];
  for (let place = Math.ceil(low / step - 1e-9); place <= high / step + 1e-9; place++) ticks.push(place * step);
  const largest = Math.max(Math.abs(low), Math.abs(high));
  return ticks.map((at) => [at, linearText(at, step, largest)]);
}

function linearText(at, step, largest) {
  if (Math.abs(at) < step / 2) return "0";
  if (largest < 1e-3 || largest >= 1e15) return numberText(at);
  const [unit, letter] = (largest >= 1e4 && SI.find(([size]) => largest >= size)) || [1, ""];
  const decimals = Math.max(0, -Math.floor(Math.log10(step / unit) + 1e-9));
  return (at / unit).toFixed(decimals).replace("-", "−") + letter;
}

// Powers of ten, as many as there is room for; 1-2-5 between them where few powers are in sight.
function logTicks(low, high, most) {
  const [first, last] = [Math.log10(low), Math.log10(high)];
  if (last - first < 0.8) return linearTicks(low, high, most);
  const every = Math.max(1, Math.ceil((last - first) / Math.max(most, 1)));
  const factors = last - first < Math.min(2.2, most / 3) ? [1, 2, 5] : [1];
  const plain = first > -3.5 && last < 4.3;
  const ticks = [];
  for (let exponent = Math.floor(first); exponent <= last + 1e-9; exponent++) {
    if (exponent % every) continue;
    for (const factor of factors) {
      const at = factor * 10 ** exponent;
      if (at >= low * 0.999 && at <= high * 1.001) ticks.push([at, logText(factor, exponent, plain)]);
    }
  }
  return ticks.length > 1 ? ticks : linearTicks(low, high, most);
}

// One notation for all of an axis, but for the numbers that nobody writes as powers.
function logText(factor, exponent, plain) {
  if (plain || (exponent >= -1 && exponent <= 2)) return String(Number((factor * 10 ** exponent).toPrecision(1)));
  return factor === 1 ? powerText(exponent) : `${factor}×${powerText(exponent)}`;
}

// What an axis spans: its own limits, else those of the values, with a little air.
function makeScale(axis, values, [from, to], anchored) {
  const log = axis.scale === "log";
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (Number.isFinite(value) && (!log || value > 0)) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) [low, high] = log ? [1, 10] : [0, 1];
  if (anchored && !log) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  const forward = log ? Math.log10 : (value) => value;
  const backward = log ? (value) => 10 ** value : (value) => value;
  const span = forward(high) - forward(low) || (log ? 1 : Math.abs(high) || 1);
  const air = [anchored === "both" ? 0 : 0.04, 0.04].map((share) => share * span);
  const lowest = anchored && log ? backward(forward(low) - 0.08 * span) : backward(forward(low) - air[0]);
  low = axis.low ?? (anchored && !log && low === 0 ? 0 : lowest);
  high = axis.high ?? (anchored && !log && high === 0 ? 0 : backward(forward(high) + air[1]));
  if (log && low <= 0) low = high / 1e6;
  const [start, length] = [forward(low), forward(high) - forward(low) || 1];
  return {
    log, low, high,
    at: (value) => (log && value <= 0 ? NaN : from + ((forward(value) - start) / length) * (to - from)),
    base: from + (((log ? start : Math.min(Math.max(0, low), high)) - start) / length) * (to - from),
    ticks: (most) => (axis.ticks.length ? axis.ticks : log ? logTicks(low, high, most) : linearTicks(low, high, most)),
  };
}
