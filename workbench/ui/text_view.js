// A text with a copy button; lines that the last change brought are marked.
// Which of the new lines are not among the old ones, counting how often each stood there.
function changes(before, after) {
  const left = new Map();
  before.forEach((line) => left.set(line, (left.get(line) ?? 0) + 1));
  return after.map((line) => {
    const count = left.get(line) ?? 0;
    left.set(line, count - 1);
    return count <= 0;
  });
}

// The clipboard needs a secure page; elsewhere the selected text is copied as by Ctrl+C.
async function copy(text, lines) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const range = document.createRange();
    range.selectNodeContents(lines);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }
}

function render({ model, el }) {
  const root = make(el, "div", "wb-text");
  const head = make(root, "div", "wb-text-head");
  const title = make(head, "b", "");
  const button = make(head, "button", "wb-text-copy", "Copy");
  const told = make(head, "span", "wb-text-told");
  told.setAttribute("role", "status");
  const lines = make(root, "div", "wb-text-lines");
  lines.tabIndex = 0;
  lines.setAttribute("role", "region");
  let shown = null;
  let timer = 0;

  function name() {
    title.textContent = model.get("label");
    button.title = `copy: ${model.get("label")}`;
    button.setAttribute("aria-label", button.title);
    lines.setAttribute("aria-label", model.get("label"));
  }

  function draw() {
    const after = model.get("text").replace(/\n$/, "").split("\n");
    const changed = shown === null ? after.map(() => false) : changes(shown, after);
    shown = after;
    lines.replaceChildren();
    after.forEach((line, index) => {
      // The line break belongs to the line, so that selected text keeps it; a block shows none of its own.
      make(lines, "span", changed[index] ? "wb-text-line wb-text-changed" : "wb-text-line", line + "\n");
    });
    const first = lines.querySelector(".wb-text-changed");
    // Scrolls this box alone: scrollIntoView would move the whole notebook.
    if (first) lines.scrollTop = Math.max(0, first.offsetTop - lines.offsetTop - lines.clientHeight / 3);
  }

  button.onclick = async () => {
    const done = await copy(model.get("text"), lines);
    told.textContent = done ? "copied" : "press Ctrl+C: the text is selected";
    clearTimeout(timer);
    timer = setTimeout(() => { told.textContent = ""; }, 3000);
  };
  model.on("change:text", draw);
  model.on("change:label", name);
  name();
  draw();
  const unname = nameControls(el);
  return () => { clearTimeout(timer); unname(); };
}

export default { render };
