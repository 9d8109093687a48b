// Small things that the others share, and the choice of dark or light.
const SVG = 'http://www.w3.org/2000/svg';

/** An element with attributes and children; names with "svg:" are of SVG. Text is never taken as markup. */
function make(name, attributes = {}, ...children) {
  const element = name.startsWith('svg:') ? document.createElementNS(SVG, name.slice(4)) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === 'style') element.style.cssText = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function short(value) {
  if (value === null || !Number.isFinite(value)) return '–';
  const size = Math.abs(value);
  return Number.isInteger(value) && size < 1e15 ? String(value)
    : size >= 1e4 && size < 1e15 ? value.toFixed(0) : String(+value.toPrecision(4));
}

function readData(element) {
  return JSON.parse(element.querySelector('script[type="application/json"]').textContent);
}

{
  const root = document.documentElement, button = document.getElementById('theme');
  const system = matchMedia('(prefers-color-scheme: dark)');
  const dark = () => (root.dataset.theme || (system.matches ? 'dark' : 'light')) === 'dark';
  const tell = () => { button.textContent = dark() ? '☀ light' : '☾ dark'; };
  button.hidden = false;
  button.addEventListener('click', () => { root.dataset.theme = dark() ? 'light' : 'dark'; tell(); });
  system.addEventListener('change', tell);
  tell();
}
