// A text as its tokens: bars of colour, marks, tooltips, and a choice by mouse or keyboard.
// A mark is drawn around the word, not around the space before it, which may stand at the end of another line.
function write(span, text, mark) {
  span.dataset.mark = mark;
  const ink = text.trimStart();
  if (!mark || !ink) return void (span.textContent = text);
  span.textContent = text.slice(0, text.length - ink.length);
  make(span, "span", "wb-token-ink", ink);
}

// What is drawn outside of the nearest box that scrolls or hides cannot be seen.
function clippingBox(element) {
  let box = element.parentElement;
  while (box && getComputedStyle(box).overflowY === "visible") box = box.parentElement;
  return (box ?? document.documentElement).getBoundingClientRect();
}

function render({ model, el }) {
  // The tooltip stands beside the box that scrolls, which would cut it.
  const frame = make(el, "div", "wb-tokens-frame");
  const root = make(frame, "div", "wb-tokens");
  root.tabIndex = 0;
  root.setAttribute("role", "group");
  root.setAttribute("aria-roledescription", "text in tokens");
  const body = make(root, "div", "wb-tokens-body");
  const tip = make(frame, "div", "wb-tokens-tip");
  const live = make(frame, "div", "wb-tokens-live");
  live.setAttribute("aria-live", "polite");
  let cursor = -1;

  function draw() {
    const [texts, bars, marks] = ["texts", "bars", "marks"].map((name) => model.get(name));
    const atEnd = root.scrollTop + root.clientHeight >= root.scrollHeight - 8;
    // Spans are kept: while a text grows, only its end is new.
    while (body.children.length > texts.length) body.lastChild.remove();
    texts.forEach((text, i) => {
      const span = body.children[i] ?? make(body, "span", "");
      if (span.textContent !== text || span.dataset.mark !== (marks[i] ?? "")) write(span, text, marks[i] ?? "");
      const name = `wb-token${marks[i] ? ` wb-token-${marks[i]}` : ""}`;
      if (span.className !== name) span.className = name;
      span.dataset.index = i;
      span.style.borderBottomColor = bars[i] ?? "";
    });
    body.classList.toggle("wb-tokens-barred", bars.length > 0);
    root.classList.toggle("wb-tokens-busy", model.get("busy"));
    root.setAttribute("aria-busy", String(model.get("busy")));
    root.setAttribute("aria-label", `${model.get("label")}, ${texts.length} tokens`);
    if (atEnd && model.get("busy")) root.scrollTop = root.scrollHeight;
    point(-1);
    choose(model.get("selected"));
  }

  function choose(index) {
    body.querySelectorAll(".wb-token-chosen").forEach((span) => span.classList.remove("wb-token-chosen"));
    const span = body.children[index];
    if (!span) return;
    span.classList.add("wb-token-chosen");
    const [box, place] = [root.getBoundingClientRect(), span.getBoundingClientRect()];
    if (place.top < box.top || place.bottom > box.bottom) root.scrollTop += place.top - box.top - 30;
  }

  function point(index, speak = false) {
    body.children[cursor]?.classList.remove("wb-token-cursor");
    cursor = index;
    const span = body.children[index];
    const text = model.get("tips")[index];
    tip.style.display = span && text ? "block" : "none";
    if (!span) return;
    span.classList.add("wb-token-cursor");
    if (speak) {
      live.textContent = text || span.textContent;
      span.scrollIntoView({ block: "nearest" });
    }
    if (!text) return;
    tip.textContent = text;
    const [box, place] = [frame.getBoundingClientRect(), span.getClientRects()[0]];
    const left = Math.min(place.left - box.left, frame.clientWidth - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(0, left)}px`;
    const room = clippingBox(frame);
    const [above, below] = [place.top - room.top, room.bottom - place.bottom];
    const under = below >= tip.offsetHeight + 6 || below >= above;
    tip.style.top = `${(under ? place.bottom + 4 : place.top - 4 - tip.offsetHeight) - box.top}px`;
  }

  function step(key) {
    const last = body.children.length - 1;
    const from = cursor >= 0 ? cursor : model.get("selected");
    if (key === "Home") return 0;
    if (key === "End") return last;
    const forward = key === "ArrowRight" || key === "ArrowDown";
    if (key === "ArrowRight" || key === "ArrowLeft") return Math.min(Math.max(from + (forward ? 1 : -1), 0), last);
    const marked = model.get("marks").map((mark, i) => (mark ? i : -1)).filter((i) => i >= 0);
    const beyond = forward ? marked.find((i) => i > from) : marked.findLast((i) => i < from);
    return beyond ?? from;
  }

  const indexOf = (event) => Number(event.target.closest?.(".wb-token")?.dataset.index ?? -1);

  function select(index) {
    if (index < 0) return;
    model.set("selected", index);
    model.save_changes();
  }

  body.onmouseover = (event) => point(indexOf(event));
  body.onmouseleave = () => point(-1);
  body.onclick = (event) => select(indexOf(event));
  root.onblur = () => point(-1);
  root.onscroll = () => cursor >= 0 && !document.activeElement?.isSameNode(root) && point(-1);
  root.onkeydown = (event) => {
    if (event.key === "Enter") select(cursor);
    else if (event.key === "Escape") point(-1);
    else if (/^(Arrow|Home$|End$)/.test(event.key)) point(step(event.key), true);
    else return;
    event.preventDefault();
    event.stopPropagation(); // Jupyter moves between cells with the same keys.
  };
  const watched = ["texts", "bars", "marks", "busy", "label"].map((name) => `change:${name}`);
  let waiting = false;
  const soon = () => {
    // Several traits change in one message: one drawing for all of them.
    if (!waiting) queueMicrotask(() => { waiting = false; draw(); });
    waiting = true;
  };
  const chosen = () => choose(model.get("selected"));
  watched.forEach((name) => model.on(name, soon));
  model.on("change:selected", chosen);
  draw();
  return () => {
    watched.forEach((name) => model.off(name, soon));
    model.off("change:selected", chosen);
  };
}

export default { render };
