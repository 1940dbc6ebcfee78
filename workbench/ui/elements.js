// What every widget begins with: an element of a class, with a text, at the end of its parent.
function make(parent, tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}
