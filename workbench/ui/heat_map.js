// A heat map whose cells can be chosen with the mouse or the arrow keys and Enter. Python sends colours, not numbers.
function make(parent, tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

function render({ model, el }) {
  let cells = [];
  let cursor = [0, 0];
  const root = make(el, "div", "wb-heat");
  root.tabIndex = 0;
  root.setAttribute("role", "grid");

  function choose(row, column) {
    model.set("selected", [row, column]);
    model.save_changes();
  }

  function mark() {
    const [row, column] = model.get("selected");
    root.querySelectorAll(".wb-cell").forEach((cell) => cell.classList.remove("wb-selected", "wb-cursor"));
    cells[row]?.[column]?.classList.add("wb-selected");
    if (row >= 0) cursor = [row, column];
  }

  function draw() {
    const [rows, columns, colors, texts] = ["rows", "columns", "colors", "texts"].map((name) => model.get(name));
    root.replaceChildren();
    root.setAttribute("aria-label", `${model.get("label")}: ${rows.length} sites by ${columns.length} layers`);
    root.style.gridTemplateColumns = `max-content repeat(${columns.length}, minmax(4px, 1fr))`;
    const every = Math.ceil(columns.length / 30);
    cells = rows.map((row, i) => {
      make(root, "div", "wb-row-label", row);
      return columns.map((column, j) => {
        const cell = make(root, "div", "wb-cell");
        const text = texts[i * columns.length + j];
        cell.style.backgroundColor = colors[i * columns.length + j];
        cell.title = text;
        cell.dataset.row = i;
        cell.dataset.column = j;
        cell.setAttribute("role", "gridcell");
        cell.setAttribute("aria-label", text);
        cell.onclick = () => choose(i, j);
        return cell;
      });
    });
    make(root, "div", "wb-corner", "layer");
    columns.forEach((column, j) => make(root, "div", "wb-column-label", j % every ? "" : column));
    mark();
  }

  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  root.onkeydown = (event) => {
    if (event.key === "Enter") choose(...cursor);
    else if (steps[event.key]) {
      const [rows, columns] = [cells.length, cells[0]?.length ?? 0];
      const [down, right] = steps[event.key];
      cursor = [(cursor[0] + down + rows) % rows, (cursor[1] + right + columns) % columns];
      root.querySelectorAll(".wb-cursor").forEach((cell) => cell.classList.remove("wb-cursor"));
      cells[cursor[0]][cursor[1]].classList.add("wb-cursor");
    } else return;
    event.preventDefault();
    event.stopPropagation(); // Jupyter moves between cells with the same keys.
  };
  model.on("change:texts", draw); // Two metrics may share every colour, but never the texts.
  model.on("change:selected", mark);
  draw();
}

export default { render };
