// Curves as SVG, drawn as wide as there is room, with a cursor that tells the values.
const COLORS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9'];
const DASHES = ['', '7 4', '2 3', '10 3 2 3'];
const HEIGHT = 320, TOLD = 12, DOTS = 60;

const colorOf = i => COLORS[i % COLORS.length];
/** Each curve differs from its neighbours in colour, and in its dashes once the colours are used up. */
const dashOf = i => DASHES[Math.floor(i / COLORS.length) % DASHES.length];

function ticks(low, high, wanted) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(s => s * power >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) found.push(+(k * step).toPrecision(12));
  return found;
}

function span(values, withZero) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
  if (low > high) return [0, 1];
  if (withZero && low > 0 && low < high * 0.7) low = 0;
  if (low === high && low >= 0 && low <= 1 && withZero) return [0, 1];  // such as a precision of 1 everywhere
  if (low === high) { const room = Math.abs(low) / 2 || 0.5; return [low - room, high + room]; }
  return [low, high];
}

class Curves {
  constructor(place) {
    this.place = place;
    this.data = readData(place);
    this.shown = this.data.lines.map(() => true);
    this.at = null;  // the place of the cursor among all x
    this.svg = make('svg:svg', {tabindex: '0', role: 'img', 'aria-label':
      `${this.data.title}: ${this.data.y} over ${this.data.x}. Arrow keys read the values.`});
    this.tip = make('div', {class: 'tip', hidden: '', 'aria-live': 'polite'});
    place.append(this.svg, this.tip);
    if (this.data.lines.length > 1) place.append(this.legend());
    this.svg.addEventListener('pointermove', event => this.point(event));
    this.svg.addEventListener('pointerdown', event => this.point(event));
    this.svg.addEventListener('pointerleave', () => this.clear());
    this.svg.addEventListener('blur', () => this.clear());
    this.svg.addEventListener('keydown', event => this.key(event));
    new ResizeObserver(() => this.draw()).observe(place);
    this.draw();
  }

  legend() {
    return make('div', {class: 'legend', role: 'group', 'aria-label': 'Curves that are shown'},
      ...this.data.lines.map((line, i) => {
        const button = make('button', {type: 'button', 'aria-pressed': 'true'},
          make('svg:svg', {viewBox: '0 0 26 8', 'aria-hidden': 'true'}, make('svg:path',
            {d: 'M0 4H26', stroke: colorOf(i), 'stroke-dasharray': dashOf(i), 'stroke-width': 3})),
          make('span', {}, line.name));
        button.addEventListener('click', () => {
          this.shown[i] = !this.shown[i];
          button.setAttribute('aria-pressed', this.shown[i]);
          this.draw();
        });
        return button;
      }));
  }

  lines() { return this.data.lines.map((line, i) => ({...line, i})).filter(line => this.shown[line.i]); }

  draw() {
    const width = Math.max(260, this.place.clientWidth), lines = this.lines();
    if (width === this.width && this.drawn === this.shown.join()) return;
    this.width = width; this.drawn = this.shown.join();
    this.xs = [...new Set(lines.flatMap(line => line.x))].filter(x => x !== null).sort((a, b) => a - b);
    const whole = this.xs.every(Number.isInteger), [x0, x1] = span(this.xs, false), ys = span(lines.flatMap(line => line.y), true);
    const marks = ticks(ys[0], ys[1], 5), step = marks.length > 1 ? marks[1] - marks[0] : ys[1] - ys[0];
    const y0 = Math.floor(ys[0] / step + 1e-6) * step, y1 = Math.ceil(ys[1] / step - 1e-6) * step;
    const labels = ticks(y0, y1, 5), left = 14 + 7.2 * Math.max(...labels.map(v => short(v).length));
    this.box = {left, right: width - 14, top: 26, bottom: HEIGHT - 42};
    this.X = x => left + (width - 14 - left) * (x - x0) / (x1 - x0);
    this.Y = y => this.box.bottom - (this.box.bottom - this.box.top) * (y - y0) / (y1 - y0);
    this.svg.setAttribute('viewBox', `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...this.axes(labels, ticks(x0, x1, Math.max(2, Math.floor(width / 110))).filter(x => !whole || Number.isInteger(x))),
      ...lines.flatMap(line => this.curve(line)));
    this.cursor = make('svg:g');
    this.svg.append(this.cursor);
  }

  axes(rows, columns) {
    const {left, right, top, bottom} = this.box;
    return [
      ...rows.flatMap(y => [
        make('svg:path', {class: 'grid', d: `M${left} ${this.Y(y)}H${right}`}),
        make('svg:text', {x: left - 7, y: this.Y(y) + 4, 'text-anchor': 'end'}, short(y))]),
      ...columns.map(x => make('svg:text', {x: this.X(x), y: bottom + 18, 'text-anchor': 'middle'}, short(x))),
      make('svg:path', {class: 'axis', fill: 'none', d: `M${left} ${top}V${bottom}H${right}`}),
      make('svg:text', {x: left, y: 14}, this.data.y),
      make('svg:text', {x: right, y: HEIGHT - 6, 'text-anchor': 'end'}, this.data.x)];
  }

  curve(line) {
    let path = '', gap = true;
    line.x.forEach((x, k) => {
      const y = line.y[k];
      if (x === null || y === null) { gap = true; return; }
      path += `${gap ? 'M' : 'L'}${this.X(x).toFixed(1)} ${this.Y(y).toFixed(1)}`;
      gap = false;
    });
    const color = colorOf(line.i);
    const parts = [make('svg:path', {class: 'curve', d: path, stroke: color, 'stroke-dasharray': dashOf(line.i)})];
    if (line.x.length <= DOTS) line.x.forEach((x, k) => {
      if (x !== null && line.y[k] !== null) parts.push(make('svg:circle', {cx: this.X(x), cy: this.Y(line.y[k]), r: 3, fill: color}));
    });
    return parts;
  }

  point(event) {
    const box = this.svg.getBoundingClientRect(), x = (event.clientX - box.left) * this.width / box.width;
    let best = 0;
    this.xs.forEach((value, k) => { if (Math.abs(this.X(value) - x) < Math.abs(this.X(this.xs[best]) - x)) best = k; });
    this.read(best);
  }

  key(event) {
    const last = this.xs.length - 1, stride = event.shiftKey ? Math.ceil(last / 20) : 1;
    const to = {ArrowLeft: this.at === null ? last : this.at - stride, ArrowRight: this.at === null ? 0 : this.at + stride,
      Home: 0, End: last}[event.key];
    if (event.key === 'Escape') this.clear();
    if (to === undefined) return;
    event.preventDefault();
    this.read(Math.max(0, Math.min(last, to)));
  }

  /** The value of each curve nearest to the cursor, the highest first. */
  read(at) {
    if (!this.xs.length) return;
    this.at = at;
    const x = this.xs[at], slack = (this.xs[this.xs.length - 1] - this.xs[0]) / 50, told = [];
    for (const line of this.lines()) {
      let best = -1;
      line.x.forEach((other, k) => {
        if (other !== null && line.y[k] !== null && (best < 0 || Math.abs(other - x) < Math.abs(line.x[best] - x))) best = k;
      });
      if (best >= 0 && Math.abs(line.x[best] - x) <= slack) told.push({line, x: line.x[best], y: line.y[best]});
    }
    told.sort((a, b) => b.y - a.y);
    this.cursor.replaceChildren(
      make('svg:path', {class: 'cursor', d: `M${this.X(x)} ${this.box.top}V${this.box.bottom}`}),
      ...told.map(t => make('svg:circle', {cx: this.X(t.x), cy: this.Y(t.y), r: 4.5, fill: colorOf(t.line.i)})));
    this.tip.replaceChildren(make('b', {}, `${this.data.x} ${short(x)}`), ...told.slice(0, TOLD).map(t => make('div', {},
      make('i', {style: `background:${colorOf(t.line.i)}`}), make('span', {class: 'who'}, t.line.name), make('span', {}, short(t.y)))));
    if (told.length > TOLD) this.tip.append(make('div', {}, `and ${told.length - TOLD} lower ones`));
    this.tip.hidden = false;
    const scale = this.svg.clientWidth / this.width, place = this.X(x) * scale;
    const flip = place + this.tip.offsetWidth + 20 > this.svg.clientWidth;
    this.tip.style.left = `${Math.max(0, flip ? place - this.tip.offsetWidth - 12 : place + 12)}px`;
    this.tip.style.top = `${this.box.top}px`;
  }

  clear() { this.at = null; this.tip.hidden = true; this.cursor?.replaceChildren(); }
}

for (const place of document.querySelectorAll('.chart')) new Curves(place);
