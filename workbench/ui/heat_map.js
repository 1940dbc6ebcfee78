// A heat map whose cells can be chosen with the mouse or the arrow keys and Enter. Python sends colours, not numbers.
const SHAPE = ["rows", "columns", "row_groups", "axes", "names_rows"];
const CONTENT = ["colors", "texts", "marks", "label"];
const LABEL_PX = 22;
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
let maps = 0;

function render({ model, el }) {
  const name = `wb-heat-${++maps}`;
  const root = make(el, "div", "wb-heat");
  root.tabIndex = 0;
  root.setAttribute("role", "grid");
  let [cells, labels, cursor, every, asked] = [[], [], [0, 0], 0, false];

  function choose(row, column) {
    model.set("selected", [row, column]);
    model.save_changes();
  }

  // The frame: made anew only when rows or columns are others, so that the focus and the cursor stay.
  function build() {
    const [rows, columns, groups, axes, namesRows] = SHAPE.map((trait) => model.get(trait));
    root.replaceChildren();
    root.style.gridTemplateColumns = `max-content repeat(${columns.length}, minmax(4px, 1fr))`;
    if (namesRows) make(root, "div", "wb-corner wb-rows-name", axes[0]);
    cells = rows.map((row, i) => {
      if (groups[i] && groups[i] !== groups[i - 1]) make(root, "div", "wb-row-group", groups[i]);
      const line = make(root, "div", "wb-row");
      line.setAttribute("role", "row");
      make(line, "div", "wb-row-label", row).setAttribute("role", "rowheader");
      return columns.map((_, j) => {
        const cell = make(line, "div", "wb-cell");
        Object.assign(cell.dataset, { row: i, column: j });
        cell.id = `${name}-${i}-${j}`;
        cell.setAttribute("role", "gridcell");
        return cell;
      });
    });
    make(root, "div", "wb-corner", axes[1]);
    labels = columns.map((column) => make(root, "div", "wb-column-label"));
    every = 0;
    thinLabels();
    cursor = [Math.min(cursor[0], rows.length - 1), Math.min(cursor[1], columns.length - 1)].map((place) => Math.max(0, place));
  }

  function fill() {
    const [colors, texts, marks, label] = CONTENT.map((trait) => model.get(trait));
    const [rows, columns, , axes] = SHAPE.map((trait) => model.get(trait));
    root.setAttribute("aria-label", `${label}: ${rows.length} by ${columns.length} (${axes.join(" by ")})`);
    cells.forEach((line, i) =>
      line.forEach((cell, j) => {
        const place = i * columns.length + j;
        cell.style.backgroundColor = colors[place] ?? "transparent";
        cell.title = texts[place] ?? "";
        cell.setAttribute("aria-label", texts[place] ?? "");
        cell.dataset.mark = marks[place] ?? "";
        cell.classList.toggle("wb-empty", !texts[place]); // there is no such place
        cell.classList.toggle("wb-unknown", Boolean(texts[place]) && colors[place] === "transparent");
      }),
    );
    show();
  }

  // Labels never overlap: where a column is narrower than its number, only every few are written.
  function thinLabels() {
    const columns = model.get("columns");
    const width = (cells[0]?.[0]?.getBoundingClientRect().width ?? 0) + 1;
    const longest = Math.max(LABEL_PX, ...columns.map((column) => column.length * 7 + 6));
    const apart = width > 4 ? Math.ceil(longest / width) : Math.ceil(columns.length / 30);
    const steps = [1, 2, 5, 10, 20, 50, 100];
    const next = steps.find((step) => step >= apart) ?? apart;
    if (next === every) return;
    every = next;
    labels.forEach((label, j) => (label.textContent = j % every ? "" : columns[j]));
  }

  function show() {
    root.querySelectorAll(".wb-selected, .wb-cursor").forEach((cell) => cell.classList.remove("wb-selected", "wb-cursor"));
    root.querySelectorAll("[aria-selected]").forEach((cell) => cell.removeAttribute("aria-selected"));
    const [row, column] = model.get("selected");
    const cell = cells[row]?.[column];
    if (!cell) return;
    cell.classList.add("wb-selected");
    cell.setAttribute("aria-selected", "true");
    root.setAttribute("aria-activedescendant", cell.id);
    cursor = [row, column];
  }

  function move([down, right]) {
    const [rows, columns] = [cells.length, cells[0]?.length ?? 0];
    if (!rows || !columns) return;
    cells[cursor[0]][cursor[1]].classList.remove("wb-cursor");
    cursor = [(cursor[0] + down + rows) % rows, (cursor[1] + right + columns) % columns];
    const cell = cells[cursor[0]][cursor[1]];
    cell.classList.add("wb-cursor");
    root.setAttribute("aria-activedescendant", cell.id);
  }

  // Traits that come in one message are drawn once.
  let rebuilt = false;
  function ask(shape) {
    rebuilt ||= shape;
    if (asked) return;
    asked = true;
    queueMicrotask(() => {
      asked = false;
      if (rebuilt) build();
      rebuilt = false;
      fill();
    });
  }

  root.onclick = (event) => {
    const cell = event.target.closest(".wb-cell");
    if (cell && !cell.classList.contains("wb-empty")) choose(Number(cell.dataset.row), Number(cell.dataset.column));
  };
  root.onkeydown = (event) => {
    if (event.key === "Enter" || event.key === " ") choose(...cursor);
    else if (STEPS[event.key]) move(STEPS[event.key]);
    else return;
    event.preventDefault();
    event.stopPropagation(); // Jupyter moves between cells with the same keys.
  };
  const [onShape, onContent] = [() => ask(true), () => ask(false)];
  const watched = [...SHAPE.map((trait) => [trait, onShape]), ...CONTENT.map((trait) => [trait, onContent]), ["selected", show]];
  watched.forEach(([trait, callback]) => model.on(`change:${trait}`, callback));
  build();
  fill();
  const observer = new ResizeObserver(thinLabels);
  observer.observe(root);
  return () => {
    observer.disconnect();
    watched.forEach(([trait, callback]) => model.off(`change:${trait}`, callback));
  };
}

export default { render };
