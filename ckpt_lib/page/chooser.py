"""The piece of the page that chooses files and sends them to the server, by the uploads of the API.

Its script digests each file, begins all uploads, so that what does not fit is refused before a byte is sent, and sends
the files in pieces. A piece that fails is sent again from where the server is. Names of files are only ever put into
the text of the page.
"""

from __future__ import annotations

import gradio as gr

from ckpt_lib.web.gate import PAGE_PATH
from ckpt_lib.web.uploads import MOST_UPLOADS

_HTML = """
<div class="ck-drop">
  <p class="ck-bar"><button type="button" class="ck-button ck-primary" data-choose="files">Choose files…</button>
  <button type="button" class="ck-button" data-choose="folder">Choose a folder…</button>
  <span class="ck-soft">or drop them here</span></p>
  <input type="file" multiple hidden aria-label="Files" data-of="files">
  <input type="file" webkitdirectory hidden aria-label="Folder" data-of="folder">
  <p class="ck-bar" data-part="going" hidden><progress max="1" aria-label="Sending"></progress>
  <span role="status" data-part="told"></span><button type="button" class="ck-button" data-part="stop">Stop</button></p>
  <div class="ck-notice ck-error" role="alert" data-part="problem" hidden></div>
</div>
"""
_SHA256 = """
const BLOCK = 4 * 2 ** 20;
const primes = [];
for (let n = 2; primes.length < 64; n++) if (primes.every(p => n % p)) primes.push(n);
const FACTORS = Int32Array.from(primes, p => Math.cbrt(p) % 1 * 2 ** 32 | 0);
const START = Int32Array.from(primes.slice(0, 8), p => Math.sqrt(p) % 1 * 2 ** 32 | 0);
function compress(state, w, bytes) {
    const view = new DataView(bytes.buffer);
    let [h0, h1, h2, h3, h4, h5, h6, h7] = state;
    for (let at = 0; at < bytes.length; at += 64) {
        for (let i = 0; i < 16; i++) w[i] = view.getInt32(at + 4 * i);
        for (let i = 16; i < 64; i++) {
            const x = w[i - 15], y = w[i - 2];
            const s0 = (x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3;
            const s1 = (y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10;
            w[i] = w[i - 16] + s0 + w[i - 7] + s1 | 0;
        }
        let a = h0, b = h1, c = h2, d = h3, e = h4, f = h5, g = h6, h = h7;
        for (let i = 0; i < 64; i++) {
            const s1 = (e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7);
            const t1 = h + s1 + (e & f ^ ~e & g) + FACTORS[i] + w[i] | 0;
            const s0 = (a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10);
            const t2 = s0 + (a & b ^ a & c ^ b & c) | 0;
            h = g; g = f; f = e; e = d + t1 | 0; d = c; c = b; b = a; a = t1 + t2 | 0;
        }
        h0 = h0 + a | 0; h1 = h1 + b | 0; h2 = h2 + c | 0; h3 = h3 + d | 0;
        h4 = h4 + e | 0; h5 = h5 + f | 0; h6 = h6 + g | 0; h7 = h7 + h | 0;
    }
    state.set([h0, h1, h2, h3, h4, h5, h6, h7]);
}
function padded(bytes, size) {
    const whole = new Uint8Array(Math.ceil((bytes.length + 9) / 64) * 64);
    whole.set(bytes);
    whole[bytes.length] = 128;
    new DataView(whole.buffer).setBigUint64(whole.length - 8, BigInt(size) * 8n);
    return whole;
}
async function sha256(file, told) {
    const state = Int32Array.from(START), w = new Int32Array(64);
    for (let at = 0, isLast = false; !isLast; at += BLOCK) {
        const bytes = new Uint8Array(await file.slice(at, at + BLOCK).arrayBuffer());
        isLast = at + BLOCK > file.size;
        compress(state, w, isLast ? padded(bytes, file.size) : bytes);
        told(bytes.length);
    }
    const digest = new DataView(new ArrayBuffer(32));
    state.forEach((word, i) => digest.setInt32(4 * i, word));
    return btoa(String.fromCharCode(...new Uint8Array(digest.buffer)));
}
"""
"""The digest of a file of any size: what browsers have for that takes a file as a whole, and only with HTTPS."""
_SENDING = """
const PLACE = '__PLACE__', MOST_FILES = __MOST_FILES__, PIECE = 8 * 2 ** 20, MOST_FAILURES = 6;
let stopping = null, begun = [];
class Refused extends Error {}
const pause = seconds => new Promise(resolve => setTimeout(resolve, seconds * 1000));
async function sentence(answer) {
    const problem = await answer.json().catch(() => ({}));
    const text = problem.detail || `the server answers ${answer.status}`;
    const more = [problem.expected && `expected ${problem.expected}`, problem.got && `got ${problem.got}`];
    const all = [text, ...more].filter(Boolean).join('; ');
    return `${all[0].toUpperCase()}${all.slice(1)}.` + (problem.hint ? ` ${problem.hint}` : '');
}
async function call(path, options) {
    for (;;) {
        const answer = await fetch(PLACE + path, {...options, signal: stopping.signal});
        if (answer.ok) return answer;
        const told = await sentence(answer);
        if (answer.status === 409) throw new Error(told);  // the upload goes on elsewhere, which HEAD tells
        if (answer.status !== 429 && answer.status !== 503) throw new Refused(told);
        part('told').textContent = `Waiting: ${told}`;
        await pause(Number(answer.headers.get('Retry-After')) || 1);
        stopping.signal.throwIfAborted();
    }
}
function nameOf(path, taken) {
    const clean = part => part.slice(-190).replace(/[^A-Za-z0-9._=+,@-]/g, '_').replace(/^[^A-Za-z0-9_]/, '_');
    const parts = path.split('/').slice(-8).map(clean), last = parts.pop(), dot = last.lastIndexOf('.');
    let name = [...parts, last].join('/');
    for (let n = 2; taken.has(name); n++) {
        const next = dot > 0 ? `${last.slice(0, dot)}-${n}${last.slice(dot)}` : `${last}-${n}`;
        name = [...parts, next].join('/');
    }
    taken.add(name);
    return name;
}
async function begin(file, name, digest) {
    const headers = {'Upload-Length': file.size, 'Upload-Metadata': `filename ${btoa(name)}`,
        'Repr-Digest': `sha-256=:${digest}:`};
    const answer = await call('', {method: 'POST', headers});
    const id = (await answer.json()).upload_id;
    begun.push(id);
    return id;
}
async function send(file, id, told) {
    const path = `/${id}`, type = 'application/offset+octet-stream';
    for (let at = 0, failures = 0, isKnown = true; at < file.size;) {
        const before = at, headers = {'Content-Type': type, 'Upload-Offset': at};
        try {
            const piece = {method: 'PATCH', headers, body: file.slice(at, at + PIECE)};
            const answer = await call(path, isKnown ? piece : {method: 'HEAD'});
            at = Number(answer.headers.get('Upload-Offset'));
            if (isKnown) failures = 0;
            isKnown = true;
        } catch (error) {
            if (error instanceof Refused || stopping.signal.aborted || ++failures > MOST_FAILURES) throw error;
            isKnown = false;
            await pause(failures);
        }
        told(at - before);
    }
}
function forget(ids) {
    for (const id of ids) fetch(`${PLACE}/${id}`, {method: 'DELETE', keepalive: true}).catch(() => {});
}
const part = name => element.querySelector(`[data-part=${name}]`);
function counted(word, total) {
    let done = 0;
    return (bytes, name) => {
        done += bytes;
        part('going').querySelector('progress').value = total ? done / total : 1;
        part('told').textContent = `${word} ${name}, ${Math.floor(total ? done / total * 100 : 100)} %`;
    };
}
async function checkRoom(count, total) {
    const whole = number => number.toLocaleString('en');
    if (count > MOST_FILES) throw new Refused(`Those are too many files: ${whole(count)}, and the server takes `
        + `${whole(MOST_FILES)}. ` + 'On its machine, `ckpt import --tree` takes any number.');
    const most = Number((await call('', {method: 'OPTIONS'})).headers.get('Tus-Max-Size'));
    const size = bytes => `${whole(bytes)} bytes`;
    if (total > most) throw new Refused(`That is too large: ${size(total)}, and the server takes ${size(most)}. `
        + 'On its machine, `ckpt import` and `ckpt convert` take files of any size.');
}
async function sendAll(files) {
    const total = files.reduce((sum, item) => sum + item.file.size, 0), taken = new Set();
    await checkRoom(files.length, total);
    const readOf = counted('Reading', total), sentOf = counted('Sending', total), names = [], digests = [];
    for (const {file, path} of files) {
        names.push(nameOf(path, taken));
        digests.push(await sha256(file, bytes => {
            stopping.signal.throwIfAborted();
            readOf(bytes, path);
        }));
    }
    for (let i = 0; i < files.length; i++) await begin(files[i].file, names[i], digests[i]);
    for (let i = 0; i < files.length; i++) await send(files[i].file, begun[i], bytes => sentOf(bytes, files[i].path));
}
async function take(arriving) {
    if (stopping) return;
    stopping = new AbortController();
    part('problem').hidden = true;
    part('told').textContent = '';
    part('going').hidden = false;
    try {
        const files = (await arriving).filter(item => !item.path.split('/').some(name => name.startsWith('.')));
        if (!files.length) throw new Refused('There is no file to send.');
        files.sort((a, b) => a.file.lastModified - b.file.lastModified);
        await sendAll(files);
        trigger('act', {act: 'files', value: begun.join(' ')});
        begun = [];
    } catch (error) {
        forget(begun);
        begun = [];
        if (!stopping.signal.aborted) {
            part('problem').textContent = error instanceof Refused ? error.message
                : `A file could not be sent: ${error.message}`;
            part('problem').hidden = false;
        }
    }
    part('going').hidden = true;
    stopping = null;
}
"""
_CHOOSING = """
async function dropped(entry) {
    if (entry.isFile) {
        const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
        return [{file, path: entry.fullPath.slice(1)}];
    }
    const reader = entry.createReader(), found = [];
    for (;;) {
        const entries = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
        if (!entries.length) return found;
        for (const item of entries) found.push(...await dropped(item));
    }
}
element.addEventListener('click', event => {
    const chooser = event.target.closest('[data-choose]');
    if (chooser) element.querySelector(`[data-of=${chooser.dataset.choose}]`).click();
    if (event.target.closest('[data-part=stop]')) stopping.abort();
});
element.addEventListener('change', event => {
    const files = [...event.target.files].map(file => ({file, path: file.webkitRelativePath || file.name}));
    event.target.value = '';
    if (files.length) take(files);
});
const over = isOver => element.querySelector('.ck-drop').classList.toggle('ck-over', isOver);
element.addEventListener('dragover', event => { event.preventDefault(); over(true); });
element.addEventListener('dragleave', () => over(false));
element.addEventListener('drop', event => {
    event.preventDefault();
    over(false);
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(Boolean);
    const files = [...event.dataTransfer.files].map(file => ({file, path: file.name}));
    take(entries.length ? Promise.all(entries.map(dropped)).then(found => found.flat()) : files);
});
addEventListener('pagehide', event => {
    if (event.persisted) return;
    const held = document.querySelector('#ck-files [data-uploads]');
    forget([...begun, ...(held ? held.dataset.uploads.split(' ') : [])]);
});
"""
"""When the page is left, what it has sent goes, unless an import has taken it over."""


def chooser() -> gr.HTML:
    """Return the component. Its event ``act`` tells which uploads there are once all files have arrived."""
    sending = _SENDING.replace("__PLACE__", f"{PAGE_PATH}/uploads").replace("__MOST_FILES__", str(MOST_UPLOADS))
    script = _SHA256 + sending + _CHOOSING
    return gr.HTML(_HTML, js_on_load=script, apply_default_css=False, elem_id="ck-chooser")
