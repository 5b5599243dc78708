'use strict';

const $ = (id) => document.getElementById(id);
const main = document.querySelector('main');
const mayClean = main.dataset.scope === 'clean';

for (const button of document.querySelectorAll('.needs-js')) {
  button.hidden = button.classList.contains('needs-clean') && !mayClean;
}

function say(words) {
  $('said').textContent = words;
}

function size(bytes) {
  const units = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'];
  let at = 0;
  while (bytes >= 1024 && at < units.length - 1) {
    bytes /= 1024;
    at += 1;
  }
  return `${bytes.toFixed(at ? 1 : 0)} ${units[at]}`;
}

async function call(path, body, headers = {}) {
  const answer = await fetch(path, {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', ...headers },
    body: JSON.stringify(body),
  });
  return read(answer);
}

async function read(answer) {
  if (answer.status === 401) location.reload(); // the session is over
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.detail || answer.statusText);
  return told;
}

function ask(title, words, yes) {
  $('ask-title').textContent = title;
  $('ask-words').textContent = words;
  $('ask-yes').textContent = yes;
  const dialog = $('ask');
  dialog.returnValue = 'no';
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue === 'yes'), { once: true });
  });
}

let working = 0;

async function doing(button, work) {
  button.disabled = true;
  working += 1;
  try {
    await work();
  } catch (error) {
    say(`That did not work: ${error.message}`);
  } finally {
    button.disabled = false;
    working -= 1;
  }
}

// Not under somebody's hand: a question that is open, or work that is under way, comes first.
function refresh(milliseconds) {
  setTimeout(() => (working ? refresh(milliseconds) : location.reload()), milliseconds);
}

async function plan() {
  const told = await read(await fetch('/api/cleanup/plan'));
  const jobs = told.cleaned_jobs.successful + told.cleaned_jobs.failed;
  return { jobs, words: `${jobs} jobs (${told.cleaned_jobs.successful} successful, ${told.cleaned_jobs.failed} failed), ${told.space_freed.human_readable}` };
}

$('preview').addEventListener('click', (event) => doing(event.target, async () => {
  say('Looking …');
  const told = await plan();
  say(`A run now would take ${told.words}.`);
}));

$('clean').addEventListener('click', (event) => doing(event.target, async () => {
  say('Looking …');
  const told = await plan();
  say('');
  if (!(await ask('Clean now?', `This deletes the data of ${told.words}. Their metadata stays.`, 'Clean now'))) return;
  const run = await call('/api/cleanup', {}, { Prefer: 'respond-async' });
  say(`Run ${run.run_id} has begun.`);
  mine = true;
  await watch(run);
}));

// A short run may come and go between two events, so its own address says when it is over.
async function watch(run) {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 500));
    const told = await read(await fetch(run.url));
    if (!told.finished_at) continue;
    sessionStorage.setItem('said', `Run ${run.run_id} is over: ${told.outcome}, ${size(told.bytes_freed)} freed.`);
    location.reload();
    return;
  }
}

for (const button of document.querySelectorAll('.hold')) {
  button.addEventListener('click', () => doing(button, async () => {
    const job = JSON.parse(button.dataset.job);
    if (!(await ask('Hold this job?', `Job ${job} is not cleaned until somebody releases it.`, 'Hold'))) return;
    const told = await call('/api/cleanup/holds', { job_id: job, reason: 'held on the dashboard' });
    if (told.warning) sessionStorage.setItem('said', `It is held, but ${told.warning}.`);
    location.reload();
  }));
}

for (const button of document.querySelectorAll('.release')) {
  button.addEventListener('click', () => doing(button, async () => {
    const job = JSON.parse(button.dataset.job);
    if (!(await ask('Release this job?', `Job ${job} goes when its retention is over.`, 'Release'))) return;
    await call('/api/cleanup/holds/release', { job_id: job });
    location.reload();
  }));
}

for (const button of document.querySelectorAll('.restore')) {
  button.addEventListener('click', () => doing(button, async () => {
    const job = JSON.parse(button.dataset.job);
    if (!(await ask('Restore this?', `${job} (${button.dataset.size}) goes back to where it was; a job is then held for its retention once more.`, 'Restore'))) return;
    const told = await call('/api/cleanup/trash/restore', { job_id: job });
    sessionStorage.setItem('said', `Restored ${told.restored.join(', ')}.`);
    location.reload();
  }));
}

// Tables sort by a click on their heads; numbers are in data-value.
for (const table of document.querySelectorAll('table.sortable')) {
  table.querySelectorAll('thead th').forEach((head, column) => {
    if (head.querySelector('.quiet')) return;
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

let mine = false;
let wasRunning = !$('running').hidden;
const events = new EventSource('/api/cleanup/events');
events.addEventListener('progress', (event) => {
  const told = JSON.parse(event.data);
  wasRunning = true;
  $('running').hidden = false;
  $('bar').max = told.jobs_total || 1;
  $('bar').value = told.jobs_done;
  $('far').textContent = `${told.jobs_done} of ${told.jobs_total} jobs, ${size(told.bytes_freed)} freed`;
});
events.addEventListener('idle', () => {
  if (!wasRunning || mine) return;
  wasRunning = false;
  sessionStorage.setItem('said', 'The run is over.');
  refresh(100);
});

if (sessionStorage.getItem('said')) {
  say(sessionStorage.getItem('said'));
  sessionStorage.removeItem('said');
}

// The plan is worked out beside the page; what the next load shows then has it.
if ('unfinished' in main.dataset) refresh(1500);
