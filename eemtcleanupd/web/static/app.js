'use strict';

// All pages work without this file. It shows the progress of a run as it goes, and sorts tables.
const $ = (id) => document.getElementById(id);
const main = document.querySelector('main');
const number = new Intl.NumberFormat('en');

function plural(count, noun) {
  return `${number.format(count)} ${noun}${count === 1 ? '' : 's'}`;
}

function size(bytes) {
  const units = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'];
  let index = 0;
  while (bytes >= 1024 && index < units.length - 1) {
    bytes /= 1024;
    index += 1;
  }
  return `${bytes.toFixed(index ? 1 : 0).replace('.0', '')} ${units[index]}`;
}

// A click on a column header sorts the table; data-value has the number of a cell.
for (const table of document.querySelectorAll('table.sortable')) {
  table.querySelectorAll('thead th').forEach((head, column) => {
    if (head.querySelector('.visually-hidden')) return;
    const button = document.createElement('button');
    button.type = 'button';
    button.className = 'sort';
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener('click', () => {
      const up = head.getAttribute('aria-sort') !== 'ascending';
      for (const other of table.querySelectorAll('thead th')) other.removeAttribute('aria-sort');
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      const of = (row) => row.cells[column];
      const rows = [...table.tBodies[0].rows].sort((a, b) => (of(a).dataset.value !== undefined
        ? of(a).dataset.value - of(b).dataset.value
        : of(a).textContent.localeCompare(of(b).textContent, undefined, { numeric: true })));
      table.tBodies[0].replaceChildren(...(up ? rows : rows.reverse()));
    });
  });
}

// A reload must not cancel the way to another page, or a form that is being sent.
let isLeaving = false;
addEventListener('beforeunload', () => { isLeaving = true; });

function reload(milliseconds) {
  setTimeout(() => { if (!isLeaving) location.reload(); }, milliseconds);
}

if ($('running')) {
  let wasRunning = !$('running').hidden;
  const events = new EventSource('/api/cleanup/events');
  events.addEventListener('progress', (event) => {
    const progress = JSON.parse(event.data);
    wasRunning = true;
    $('running').hidden = false;
    if ($('stop-run')) $('stop-run').value = progress.run_id;
    if ($('clean')) $('clean').disabled = true;
    $('bar').max = progress.jobs_total || 1;
    $('bar').value = progress.jobs_done;
    // Data in the trash uses its space until it is deleted from there.
    const trashed = progress.bytes_trashed ? `, ${size(progress.bytes_trashed)} moved to the trash` : '';
    $('progress-text').textContent = `${number.format(progress.jobs_done)} of ${plural(progress.jobs_total, 'job')}, ${size(progress.bytes_freed)} freed${trashed}`;
  });
  events.addEventListener('idle', () => {
    if (!wasRunning) return;
    wasRunning = false;
    sessionStorage.setItem('message', 'The run has finished.');
    reload(100);
  });
}

if ($('message') && sessionStorage.getItem('message')) {
  $('message').textContent = sessionStorage.getItem('message');
  sessionStorage.removeItem('message');
}

// The server is still calculating the plan; the next load of the page shows it.
if ('planPending' in main.dataset) reload(1500);
