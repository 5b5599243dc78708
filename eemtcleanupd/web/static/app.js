'use strict';

const $ = (id) => document.getElementById(id);
const main = document.querySelector('main');
const mayClean = main.dataset.scope === 'clean';

for (const button of document.querySelectorAll('.needs-js')) {
  button.hidden = button.classList.contains('needs-clean') && !mayClean;
}

function show(text) {
  $('message').textContent = text;
}

function showAfterReload(text) {
  sessionStorage.setItem('message', text);
  location.reload();
}

function size(bytes) {
  const units = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'];
  let index = 0;
  while (bytes >= 1024 && index < units.length - 1) {
    bytes /= 1024;
    index += 1;
  }
  return `${bytes.toFixed(index ? 1 : 0)} ${units[index]}`;
}

// Data in the trash uses its space until it is deleted from there.
function amounts(freed, trashed) {
  return `${size(freed)} freed${trashed ? `, ${size(trashed)} moved to the trash` : ''}`;
}

async function post(path, body, headers = {}) {
  const answer = await fetch(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
  return read(answer);
}

async function read(answer) {
  if (answer.status === 401) location.reload(); // the session has expired
  const json = await answer.json();
  if (!answer.ok) throw new Error(json.detail || answer.statusText);
  return json;
}

function confirm(title, text, yes) {
  $('confirm-title').textContent = title;
  $('confirm-text').textContent = text;
  $('confirm-yes').textContent = yes;
  const dialog = $('confirm');
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

let pendingActions = 0;

async function run(button, action) {
  button.disabled = true;
  pendingActions += 1;
  try {
    await action();
  } catch (error) {
    show(`The action failed: ${error.message}`);
  } finally {
    button.disabled = false;
    pendingActions -= 1;
  }
}

// An open dialog or a running action delays the reload.
function refresh(milliseconds) {
  setTimeout(() => (pendingActions ? refresh(milliseconds) : location.reload()), milliseconds);
}

async function plan() {
  const { cleaned_jobs: jobs, space_freed: freed, space_trashed: trashed } = await read(await fetch('/api/cleanup/plan'));
  return `${jobs.successful + jobs.failed} jobs (${jobs.successful} successful, ${jobs.failed} failed), ${amounts(freed.bytes, trashed.bytes)}`;
}

$('preview').addEventListener('click', (event) => run(event.target, async () => {
  show('Calculating …');
  show(`A run would now clean ${await plan()}.`);
}));

$('clean').addEventListener('click', (event) => run(event.target, async () => {
  show('Calculating …');
  const summary = await plan();
  show('');
  if (!(await confirm('Clean now?', `This cleans the data of ${summary}. The metadata of the jobs is kept.`, 'Clean now'))) return;
  const started = await post('/api/cleanup', {}, { Prefer: 'respond-async' });
  show(`Run ${started.run_id} has started.`);
  isOwnRun = true;
  await watch(started);
}));

// A short run can start and end between two events, so this polls the run itself.
async function watch({ run_id: id, url }) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    const result = await read(await fetch(url));
    if (!result.finished_at) continue;
    showAfterReload(`Run ${id} has finished: ${result.outcome}, ${amounts(result.bytes_freed, result.bytes_trashed)}.`);
    return;
  }
}

for (const button of document.querySelectorAll('.hold')) {
  button.addEventListener('click', () => run(button, async () => {
    const job = JSON.parse(button.dataset.job);
    if (!(await confirm('Hold this job?', `Job ${job} is not cleaned until it is released.`, 'Hold'))) return;
    const held = await post('/api/cleanup/holds', { job_id: job, reason: 'held on the dashboard' });
    showAfterReload(held.warning ? `Job ${job} is held. Warning: ${held.warning}` : '');
  }));
}

for (const button of document.querySelectorAll('.release')) {
  button.addEventListener('click', () => run(button, async () => {
    const job = JSON.parse(button.dataset.job);
    if (!(await confirm('Release this job?', `Job ${job} is cleaned when its retention period ends.`, 'Release'))) return;
    await post('/api/cleanup/holds/release', { job_id: job });
    location.reload();
  }));
}

for (const button of document.querySelectorAll('.restore')) {
  button.addEventListener('click', () => run(button, async () => {
    const job = JSON.parse(button.dataset.job);
    if (!(await confirm('Restore this data?', `${job} (${button.dataset.size}) is moved back to its folder. A job is then held for its retention period.`, 'Restore'))) return;
    const { restored } = await post('/api/cleanup/trash/restore', { job_id: job });
    showAfterReload(`Restored ${restored.join(', ')}.`);
  }));
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

let isOwnRun = false;
let wasRunning = !$('running').hidden;
const events = new EventSource('/api/cleanup/events');
events.addEventListener('progress', (event) => {
  const progress = JSON.parse(event.data);
  wasRunning = true;
  $('running').hidden = false;
  $('bar').max = progress.jobs_total || 1;
  $('bar').value = progress.jobs_done;
  $('progress-text').textContent = `${progress.jobs_done} of ${progress.jobs_total} jobs, ${amounts(progress.bytes_freed, progress.bytes_trashed)}`;
});
events.addEventListener('idle', () => {
  if (!wasRunning || isOwnRun) return;
  wasRunning = false;
  sessionStorage.setItem('message', 'The run has finished.');
  refresh(100);
});

if (sessionStorage.getItem('message')) {
  show(sessionStorage.getItem('message'));
  sessionStorage.removeItem('message');
}

// The server is still calculating the plan; the next load of the page shows it.
if ('planPending' in main.dataset) refresh(1500);
