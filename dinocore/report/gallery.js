// Boxes over images, drawn anew when the score threshold moves, and one image at a time in a dialog.
const TRUTH = 0, FOUND = 1, WRONG = 2, MISSED = 3;
const CROWD = 40;  // boxes; more have thin lines, and only the one that is pointed at a label
const FLAT = 0.01;  // SVG draws nothing of a rectangle without width or height
const pen = document.createElement('canvas').getContext('2d');

/** A mark as it is at a threshold: its kind, or -1 where it isn't shown. An object whose answer is below it is missed. */
function kindAt([, , , , , kind, score], threshold) {
  if (score === null || score >= threshold) return kind;
  return kind === TRUTH ? MISSED : -1;
}

function labelOf(data, mark) {
  const score = mark[5] === FOUND || mark[5] === WRONG ? mark[6] : null;
  return data.labels[mark[4]] + (score === null ? '' : ` ${score.toFixed(2)}`);
}

/** The marks of an image that are drawn, with their places in its list. */
function shownOf(image, {threshold, hidden}) {
  return image.marks.map((mark, i) => ({mark, i, kind: kindAt(mark, threshold)}))
    .filter(({kind}) => kind >= 0 && !hidden.has(kind));
}

const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

/** A text that fits into so many pixels, if need be with its middle left out: its end may be a score. */
function shortened(text, width) {
  const signs = [...text], end = signs.slice(-6).join(''), without = start => `${signs.slice(0, start).join('')}…${end}`;
  if (signs.length <= 8 || pen.measureText(text).width <= width) return text;
  let start = signs.length - 7;
  while (start > 1 && pen.measureText(without(start)).width > width) start--;
  return without(start);
}

/** A place for a label at its box where there is none yet, inside the image; null where there is no room. */
function placeFor([x0, y0, , y1], width, height, size, taken) {
  const left = Math.max(0, Math.min(x0, size[0] - width));
  for (const top of [y0 - height, y0, y1, y1 - height]) {
    const plate = [left, top, left + width, top + height];
    if (width <= size[0] && top >= 0 && top + height <= size[1] && !taken.some(other => meets(plate, other))) return plate;
  }
  return null;
}

function drawMarks(svg, image, {data, threshold, hidden}, letters, picked = -1) {
  const scale = image.size[0] / (svg.clientWidth || 300);  // pixels of the image in one of the screen
  const boxes = [], labels = [], taken = [];
  pen.font = `${letters}px system-ui, "Liberation Sans", sans-serif`;
  const shown = shownOf(image, {threshold, hidden});
  for (const {mark, i, kind} of shown) {
    const place = {x: Math.min(mark[0], mark[2]), y: Math.min(mark[1], mark[3]),
      width: Math.abs(mark[2] - mark[0]) || FLAT, height: Math.abs(mark[3] - mark[1]) || FLAT};
    boxes.push(make('svg:g', {class: i === picked ? 'pick' : '', 'data-kind': data.kinds[kind]},
      make('svg:rect', {class: 'halo', ...place}), make('svg:rect', {class: data.kinds[kind], ...place})));
  }
  const rank = ({mark, i, kind}) => (i === picked ? 8 : 0) + (kind === TRUTH ? 0 : 4) + (mark[6] ?? 1);
  const told = ({mark, kind}) => kind === TRUTH && mark[6] !== null && !hidden.has(FOUND);  // by the box that answers it
  for (const one of shown.sort((a, b) => rank(b) - rank(a))) {
    const {mark, i} = one, whole = i === picked || (shown.length <= CROWD && !told(one)) ? labelOf(data, mark) : '';
    const room = image.size[0] / scale - 6, text = shortened(whole, i === picked ? room : Math.max(0.3 * room, 10 * letters));
    const plate = text && placeFor(mark, (pen.measureText(text).width + 6) * scale, (letters + 4) * scale, image.size, taken);
    if (!plate) continue;
    taken.push(plate);
    labels.push(make('svg:g', {class: i === picked ? 'pick' : ''},
      make('svg:rect', {class: 'plate', x: plate[0], y: plate[1], width: plate[2] - plate[0], height: plate[3] - plate[1]}),
      make('svg:text', {x: plate[0] + 3 * scale, y: plate[3] - 4 * scale, 'font-size': letters * scale}, text)));
  }
  svg.classList.toggle('picked', picked >= 0);
  svg.classList.toggle('crowd', shown.length > CROWD);
  svg.replaceChildren(...boxes, ...labels);
}

class Gallery {
  constructor(place) {
    this.data = readData(place);
    this.hidden = new Set();
    this.figures = [...place.querySelectorAll('figure')];
    this.bar = place.querySelector('.bar');
    this.slider = this.bar.querySelector('input');
    this.seen = new Set();
    this.marks = this.data.images.flatMap(image => image.marks);
    this.bar.hidden = !this.marks.length;
    this.slider.parentElement.hidden = !this.marks.some(mark => mark[6] !== null);
    this.threshold = this.slider.parentElement.hidden ? 0 : this.data.threshold;  // the slider rounds what it is given
    this.slider.addEventListener('input', () => { this.threshold = Number(this.slider.value); this.changed(); });
    this.kinds = [...this.bar.querySelectorAll('.kind')];
    this.kinds.forEach((button, kind) => button.addEventListener('click', () => {
      if (!this.hidden.delete(kind)) this.hidden.add(kind);
      button.setAttribute('aria-pressed', !this.hidden.has(kind));
      this.changed();
    }));
    this.watcher = new IntersectionObserver(entries => {
      for (const {target, isIntersecting} of entries) {
        if (isIntersecting) { this.seen.add(target); this.draw(target); } else this.seen.delete(target);
      }
    }, {rootMargin: '200px'});
    this.figures.forEach((figure, i) => {
      this.watcher.observe(figure);
      figure.querySelector('.open').addEventListener('click', () => large.open(this, i));
    });
    addEventListener('beforeprint', () => this.figures.forEach(figure => this.draw(figure)));
    addEventListener('resize', () => this.seen.forEach(figure => this.draw(figure)));
    this.changed();
  }

  count(marks) {
    const counts = [0, 0, 0, 0];
    for (const mark of marks) { const kind = kindAt(mark, this.threshold); if (kind >= 0) counts[kind]++; }
    return counts;
  }

  changed() {
    this.slider.nextElementSibling.textContent = this.threshold.toFixed(2);
    const used = [0, 1, 2, 3].map(kind => this.marks.some(m => m[5] === kind || (kind === MISSED && m[5] === TRUTH && m[6] !== null)));
    const counts = this.count(this.marks);
    counts[TRUTH] += counts[MISSED];  // every object that is annotated, though one that is missed is drawn as such
    counts.forEach((number, kind) => {
      this.kinds[kind].querySelector('b').textContent = number;
      this.kinds[kind].hidden = !used[kind];
    });
    this.figures.forEach((figure, i) => {
      const [answered, found, wrong, missed] = this.count(this.data.images[i].marks);
      const told = [used[TRUTH] || used[MISSED] ? `${answered + missed} annotated` : '', missed ? `${missed} missed` : '',
        used[FOUND] ? `${found} found` : '', wrong ? `${wrong} wrong` : ''];
      figure.querySelector('.count').textContent = told.filter(Boolean).join(', ');
    });
    this.seen.forEach(figure => this.draw(figure));
    large.draw();
  }

  draw(figure) {
    const image = this.data.images[this.figures.indexOf(figure)];
    drawMarks(figure.querySelector('.marks'), image, this, 11);
  }
}

const large = {
  box: document.getElementById('large'),
  gallery: null,
  index: 0,

  open(gallery, index) {
    this.gallery = gallery;
    this.index = index;
    if (!this.box.open) this.box.showModal();
    const image = gallery.data.images[index], element = this.box.querySelector('img');
    element.src = gallery.figures[index].querySelector('img').src;
    this.box.querySelector('strong').textContent = `${image.title}  (${index + 1} of ${gallery.figures.length})`;
    const [width, height] = image.size, stage = this.box.querySelector('.stage');
    element.width = width; element.height = height;
    stage.style.width = `min(100%, ${Math.max(width, 640)}px, calc(74vh * ${width / height}))`;
    this.box.querySelector('.marks').setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.draw();
  },

  get image() { return this.gallery.data.images[this.index]; },

  draw() {
    if (!this.box.open) return;
    const {data} = this.gallery;
    const rows = shownOf(this.image, this.gallery).sort((a, b) => (b.mark[6] ?? -1) - (a.mark[6] ?? -1));
    this.box.querySelector('.list').replaceChildren(...rows.map(({mark, i, kind}) => {
      const button = make('button', {type: 'button'}, `${data.names[kind]} ${labelOf(data, mark)}`);
      for (const name of ['focus', 'pointerenter', 'click']) button.addEventListener(name, () => this.pick(i));
      for (const name of ['blur', 'pointerleave']) button.addEventListener(name, () => this.pick(-1));
      return make('li', {}, button);
    }));
    this.pick(-1);
  },

  /** Draw one box with its label, and the others faintly; all of them for -1. */
  pick(i) { drawMarks(this.box.querySelector('.marks'), this.image, this.gallery, 13, i); },

  /** Pick the smallest box under the pointer. */
  point(event) {
    const box = this.box.querySelector('.marks').getBoundingClientRect(), [width, height] = this.image.size;
    const x = (event.clientX - box.left) / box.width * width, y = (event.clientY - box.top) / box.height * height;
    const area = ({mark}) => (mark[2] - mark[0]) * (mark[3] - mark[1]);
    const under = shownOf(this.image, this.gallery)
      .filter(({mark}) => mark[0] <= x && x <= mark[2] && mark[1] <= y && y <= mark[3]).sort((a, b) => area(a) - area(b));
    this.pick(under.length ? under[0].i : -1);
  },

  turn(by) {
    const many = this.gallery.figures.length;
    this.open(this.gallery, (this.index + by + many) % many);
  },
};
large.box.querySelector('.stage').addEventListener('pointermove', event => large.point(event));
large.box.querySelector('.stage').addEventListener('pointerleave', () => large.pick(-1));
large.box.querySelector('.close').addEventListener('click', () => large.box.close());
large.box.querySelector('.back').addEventListener('click', () => large.turn(-1));
large.box.querySelector('.on').addEventListener('click', () => large.turn(1));
large.box.addEventListener('click', event => { if (event.target === large.box) large.box.close(); });
large.box.addEventListener('keydown', event => {
  if (event.key === 'ArrowLeft') large.turn(-1);
  if (event.key === 'ArrowRight') large.turn(1);
});
for (const place of document.querySelectorAll('.gallery')) new Gallery(place);
