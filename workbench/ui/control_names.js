// Jupyter's sliders and groups of buttons stand beside their description, and are not named by it: a screen reader
// would hear a number only. Names them all below the outermost panel, and those that come later.
function nameControls(el) {
  let watching = null;

  function nameAll(panel) {
    panel.querySelectorAll(".widget-slider, .widget-toggle-buttons").forEach((control) => {
      const name = control.querySelector(":scope > .widget-label")?.textContent.trim();
      const named = control.querySelectorAll("[role=slider]");
      if (!name) return;
      if (named.length === 0) control.setAttribute("role", "group");
      (named.length ? named : [control]).forEach((each) => {
        if (each.getAttribute("aria-label") !== name) each.setAttribute("aria-label", name);
      });
    });
  }

  function begin() {
    let panel = null;
    for (let at = el.closest(".wb-panel"); at; at = at.parentElement.closest(".wb-panel")) panel = at;
    if (!panel) return;
    nameAll(panel);
    watching = new MutationObserver(() => nameAll(panel));
    watching.observe(panel, { childList: true, subtree: true });
  }

  // Not yet in the page while it is being drawn.
  const first = setTimeout(begin, 200);
  return () => { clearTimeout(first); watching?.disconnect(); };
}

