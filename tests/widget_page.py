"""A bare page with anywidgets on it, driven by a fake model: their JavaScript without a notebook server."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from chromium import CHROMIUM, FLAGS

# Background, panels, text and grid as JupyterLab's themes name them.
_NAMES = ("--jp-layout-color0", "--jp-layout-color1", "--jp-ui-font-color1", "--jp-border-color2")
THEMES = {"light": ("#fff", "#fff", "#222", "#e0e0e0"), "dark": ("#111", "#212121", "#fff", "#444")}
SCRIPT = """
const decode = (value) => {
  if (Array.isArray(value)) return value.map(decode);
  if (value === null || typeof value !== "object") return value;
  if ("__bytes__" in value) {
    const text = atob(value.__bytes__);
    const bytes = new Uint8Array(text.length + 3); // as from a message: not at a multiple of eight
    for (let i = 0; i < text.length; i++) bytes[i + 3] = text.charCodeAt(i);
    return new DataView(bytes.buffer, 3);
  }
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, decode(each)]));
};
window.show = async (source, state, place, width) => {
  const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
  const traits = decode(state);
  const callbacks = [];
  const model = {
    get: (name) => traits[name],
    set: (name, value) => {
      traits[name] = value;
      callbacks.forEach(([each, call]) => each === `change:${name}` && call());
    },
    save_changes: () => {},
    on: (name, call) => callbacks.push([name, call]),
    assign: (values) => Object.entries(decode(values)).forEach(([name, value]) => model.set(name, value)),
  };
  const el = document.createElement("div");
  Object.assign(el.style, { width, maxWidth: "100%", minWidth: "0" });
  document.getElementById(place).append(el);
  module.default.render({ model, el });
  (window.models ??= []).push(model);
};
"""


@contextlib.contextmanager
def widget_page(width: int = 1060, theme: str = "light") -> Iterator[Any]:
    """An empty page to put widgets on by :func:`show`."""
    from playwright.sync_api import sync_playwright

    colors = "; ".join(f"{name}: {color}" for name, color in zip(_NAMES, THEMES[theme], strict=True))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.set_content(
            f"<style>:root {{ {colors} }} body {{ background: var(--jp-layout-color0) }}</style>"
            '<div id="row" style="display: flex; flex-wrap: wrap; gap: 8px"></div>'
        )
        page.add_script_tag(content=SCRIPT)
        try:
            yield page
        finally:
            browser.close()


def show(page: Any, widget: Any) -> None:
    """Put a widget at the end of the page's row; its traits are then ``window.models``' last."""
    page.add_style_tag(content=str(widget._css))
    state = {name: widget.trait_values()[name] for name in widget.traits(sync=True) if not name.startswith("_")}
    state = {name: value for name, value in state.items() if name not in ("layout", "tabbable", "tooltip")}
    page.evaluate(
        "([source, state, width]) => window.show(source, state, 'row', width)",
        [str(widget._esm), json.loads(encoded(state)), widget.layout.width],
    )


def trait(page: Any, name: str, widget: int = -1) -> Any:
    """What the page holds of a widget's trait now; counted from the first that was shown."""
    return page.evaluate("([name, at]) => window.models.at(at).get(name)", [name, widget])


def assign(page: Any, widget: int = -1, **values: Any) -> None:
    """Set traits, as a message from Python does."""
    page.evaluate("([at, values]) => window.models.at(at).assign(values)", [widget, json.loads(encoded(values))])


def encoded(state: Any) -> str:
    """JSON, with bytes as the fake model reads them."""
    return json.dumps(state, default=lambda raw: {"__bytes__": base64.b64encode(raw).decode()})
