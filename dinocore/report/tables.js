// Tables that are sorted by a click or a key, and found in; matrices whose cells can be read.
const MANY_ROWS = 30, FEW_ROWS = 15;

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.v !== undefined) { const value = Number(cell.dataset.v); return Number.isNaN(value) ? null : value; }
  return cell.textContent === '–' ? null : cell.textContent;
}

/** Numbers before words; what is not known is last in both directions. */
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === 'number' && typeof b === 'number') return sign * (a - b);
  if (typeof a !== typeof b) return sign * (typeof a === 'number' ? -1 : 1);
  return sign * a.localeCompare(b, undefined, {numeric: true});
}

function sortBy(table, column) {
  const head = table.tHead.rows[0].cells[column], body = table.tBodies[0], rows = [...body.rows];
  const numbers = rows.some(row => typeof valueOf(row, column) === 'number');
  const before = head.getAttribute('aria-sort');
  const next = before ? (before === 'ascending' ? 'descending' : 'ascending') : numbers ? 'descending' : 'ascending';
  for (const other of table.tHead.rows[0].cells) other.removeAttribute('aria-sort');
  head.setAttribute('aria-sort', next);
  const sign = next === 'ascending' ? 1 : -1;
  rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column), sign));
  body.append(...rows);
  shorten(table);
}

function shorten(table) {
  [...table.tBodies[0].rows].forEach((row, i) => row.classList.toggle('later', i >= MANY_ROWS));
}

for (const table of document.querySelectorAll('table.sortable')) {
  [...table.tHead.rows[0].cells].forEach((cell, i) =>
    cell.firstElementChild.addEventListener('click', () => sortBy(table, i)));
  const rows = table.tBodies[0].rows;
  if (rows.length > FEW_ROWS) {
    const field = make('input', {type: 'search', placeholder: `find in ${rows.length} rows`, 'aria-label': 'Find rows'});
    field.addEventListener('input', () => {
      const wanted = field.value.trim().toLowerCase();
      for (const row of rows) row.classList.toggle('left', !row.textContent.toLowerCase().includes(wanted));
      table.classList.toggle('short', !wanted && !table.dataset.all);
    });
    table.parentElement.before(field);
  }
  if (rows.length > MANY_ROWS) {
    const more = make('button', {type: 'button', class: 'more'}, `show all ${rows.length} rows`);
    more.addEventListener('click', () => { table.dataset.all = '1'; table.classList.remove('short'); more.remove(); });
    table.classList.add('short');
    table.parentElement.after(more);
    shorten(table);
  }
}

for (const table of document.querySelectorAll('table.matrix')) {
  const body = table.tBodies[0].rows, heads = table.tHead.rows[table.tHead.rows.length - 1].cells;
  const readout = table.parentElement.nextElementSibling, region = table.parentElement;
  let row = 0, column = 0;
  table.classList.toggle('many', heads.length > 9 || [...heads].some((head, i) => i && head.textContent.length > 12));
  const show = (r, c) => {
    row = Math.max(0, Math.min(body.length - 1, r));
    column = Math.max(1, Math.min(heads.length - 1, c));
    table.querySelector('.here')?.classList.remove('here');
    const cell = body[row].cells[column];
    cell.classList.add('here');
    const {rows, columns} = table.dataset;
    readout.textContent = `${rows ? rows + ' ' : ''}${body[row].cells[0].textContent}, `
      + `${columns ? columns + ' ' : ''}${heads[column].textContent}: ${cell.textContent}`;
    return cell;
  };
  table.addEventListener('mouseover', event => {
    const cell = event.target.closest('tbody td');
    if (cell) show(cell.parentElement.sectionRowIndex, cell.cellIndex);
  });
  region.addEventListener('keydown', event => {
    const step = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
    if (!step) return;
    event.preventDefault();
    show(row + step[0], column + step[1]).scrollIntoView({block: 'nearest', inline: 'nearest'});
  });
}
